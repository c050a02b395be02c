"""Offline compiles: identity of a job, what the machine code holds, caching, failures."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.core import MissingEnvironmentError, Outcome
from autotune.kernels.compile import job as compile_module
from autotune.kernels.compile import kernel_source
from autotune.kernels.compile.job import (
    Compiled,
    CompileJob,
    KernelInfo,
    compile_many,
    compile_pool,
    fp16_fallback,
    kernel_info,
    representative_m,
    specialise,
)
from autotune.kernels.compile.worker import (
    count_families,
    count_instructions,
    instructions,
    launch_arguments,
)
from autotune.measure.pool import TaskResult, TaskStatus, WorkerPool
from tests.support.compiles import job, shape

LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
SMALL = (16, 64, 64, 4, 2)


class DictCache:
    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}

    def get(self, key: str) -> dict[str, Any] | None:
        return self.values.get(key)

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        self.values[key] = dict(value)


@pytest.fixture(scope="module")
def kernel() -> KernelInfo:
    return kernel_info()


@pytest.fixture(scope="module")
def pool(kernel: KernelInfo) -> Iterator[WorkerPool]:
    with compile_pool(1, kernel) as it:
        yield it


@pytest.fixture(scope="module")
def breakable(kernel: KernelInfo) -> Iterator[WorkerPool]:
    """Its one worker is broken by ``break_compiler``, anew in each test."""
    with compile_pool(1, kernel) as it:
        yield it


def test_importing_the_module_imports_neither_torch_nor_triton_nor_vllm() -> None:
    code = (
        "import sys, autotune.kernels.compile.job as c; c.kernel_info();"
        "print([n for n in ('torch', 'triton', 'vllm') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_kernel_is_found_with_its_versions(kernel: KernelInfo) -> None:
    assert kernel.path.name == "fused_moe.py"
    assert len(kernel.sha256) == 64
    assert kernel.vllm_version[0].isdigit()
    assert kernel.triton_version[0].isdigit()


def test_without_vllm_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingEnvironmentError, match=r"vLLM is not installed; install it"):
        kernel_info()


def test_the_key_is_of_the_kernel_the_compiler_and_the_job(kernel: KernelInfo) -> None:
    it = job("channel", 121, SMALL)
    keys = {
        it.key(kernel),
        it.key(replace(kernel, sha256="0" * 64)),
        it.key(replace(kernel, triton_version="0")),
        replace(it, arch=90).key(kernel),
        replace(it, gemm=2).key(kernel),
        replace(it, num_stages=3).key(kernel),
        job("tensor", 121, SMALL).key(kernel),
        replace(it, specialisation=specialise(it.shape, 1)).key(kernel),
    }
    assert len(keys) == 8
    assert job("channel", 121, SMALL).key(kernel) == it.key(kernel)
    assert it.key(replace(kernel, path=Path("/elsewhere"))) == it.key(kernel)


def test_the_key_follows_the_content_of_the_file(
    kernel: KernelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model_executor/layers/fused_moe/fused_moe.py"
    file.parent.mkdir(parents=True)
    file.write_bytes(kernel.path.read_bytes())
    monkeypatch.setattr(kernel_source, "_vllm_folder", lambda: tmp_path)
    it = job("channel", 121, SMALL)
    assert it.key(kernel_info()) == it.key(kernel)
    file.write_bytes(kernel.path.read_bytes() + b"\n")
    assert it.key(kernel_info()) != it.key(kernel)


def test_the_whole_ladder_needs_few_specialisations() -> None:
    assert len({specialise(shape("channel"), m) for m in LADDER}) == 3
    assert [specialise(shape("channel"), m).naive for m in (4, 5)] == [True, False]
    parallel = replace(shape("channel"), global_experts=256)
    assert not specialise(parallel, 1).naive


@pytest.mark.parametrize(("topk", "experts"), [(8, 128), (1, 128), (8, 60)])
def test_equal_specialisations_are_equal_to_triton(topk: int, experts: int) -> None:
    """At every M, vLLM's launcher gives Triton the integers that the specialisation stands for."""
    problem = replace(shape("channel"), topk=topk, experts=experts, global_experts=experts)
    module = kernel_source.load_kernel(kernel_info().path)

    def hints(m: int, block_m: int, gemm: int) -> tuple[object, ...]:
        seen: list[tuple[Any, ...]] = []
        module.__dict__["fused_moe_kernel"] = SimpleKernel(seen)
        it = replace(
            job("channel", 121, (block_m, 64, 64, 4, 2), gemm),
            shape=problem,
            specialisation=specialise(problem, m),
        )
        arguments = launch_arguments(it)
        assert arguments["A"].shape[0] * arguments["top_k"] == problem.topk * representative_m(
            problem, it.specialisation
        )
        real = launch_arguments(it, m=m)
        out = []
        for each in (arguments, real):
            seen.clear()
            module.invoke_fused_moe_triton_kernel(**each)
            out.append(tuple(_hint(value) for value in seen[0]))
        assert out[0] == out[1], (m, block_m)
        return out[0]

    for m in (*range(1, 40), *LADDER):
        for block_m in (16, 64, 256):
            hints(m, block_m, 1)
            hints(m, block_m, 2)


def _hint(value: Any) -> object:
    return (value == 1, value % 16 == 0) if isinstance(value, int) else value is None


class SimpleKernel:
    """Records the positional arguments of a launch."""

    def __init__(self, seen: list[tuple[Any, ...]]) -> None:
        self.seen = seen

    def __getitem__(self, grid: object) -> Any:
        return lambda *args, **options: self.seen.append(args)


def test_no_representative_for_an_impossible_specialisation() -> None:
    impossible = replace(specialise(shape("channel"), 1), one_token=True)
    with pytest.raises(ValueError, match="no M gives"):
        representative_m(shape("channel"), impossible)


@pytest.mark.compile
@pytest.mark.parametrize(
    ("kind", "arch", "family"),
    [
        ("channel", 121, "QMMA"),
        ("block", 121, "QMMA"),
        ("bf16", 121, "HMMA"),
        ("int8", 121, "IMMA"),
        ("channel", 90, "QGMMA"),
        *(
            pytest.param(*it, marks=pytest.mark.nightly)
            for it in (
                ("tensor", 121, "QMMA"),
                ("block", 90, "QGMMA"),
                ("bf16", 90, "HGMMA"),
                ("int8", 90, "IGMMA"),
            )
        ),
    ],
)
def test_the_tensor_cores_that_are_used(
    kernel: KernelInfo, pool: WorkerPool, kind: str, arch: int, family: str
) -> None:
    jobs = [job(kind, arch, (64, 64, 64, 4, 3), gemm) for gemm in (1, 2)]
    for compiled in compile_many(pool, jobs, kernel, None):
        assert compiled.outcome is Outcome.OK, compiled.message
        assert compiled.mma_family == family
        assert 16 < compiled.registers <= 255
        assert compiled.spill_bytes == 0
        assert compiled.instructions["LDGSTS"] > 0
        assert compiled.instructions["total"] > 100
        assert 0 < compiled.seconds < 60
        assert not fp16_fallback(compiled, shape(kind))


@pytest.mark.compile
def test_spills_are_seen(kernel: KernelInfo, pool: WorkerPool) -> None:
    """256 accumulators per thread cannot stay in registers."""
    (compiled,) = compile_many(pool, [job("channel", 121, (128, 256, 64, 4, 2))], kernel, None)
    assert compiled.outcome is Outcome.OK
    assert compiled.registers == 255
    assert compiled.spill_bytes > 0
    assert compiled.instructions["STL"] > 0
    assert compiled.instructions["LDL"] > 0


@pytest.mark.compile
@pytest.mark.parametrize("arch", [121, 90])
def test_a_group_size_changes_no_resources(kernel: KernelInfo, pool: WorkerPool, arch: int) -> None:
    results = list(pool.map_ordered(compile_with_group, [(arch, g) for g in (1, 16, 64)], 60))
    values = [result.value for result in results]
    assert values[0] is not None
    assert values == [values[0]] * 3


def compile_with_group(what: tuple[int, int]) -> tuple[int, int, int]:
    """In a worker: resources with another GROUP_SIZE_M than a job has."""
    from autotune.kernels.compile import worker as compile_worker

    arch, group = what
    plain = launch_arguments

    def with_group(it: CompileJob) -> dict[str, Any]:
        arguments = plain(it)
        arguments["config"]["GROUP_SIZE_M"] = group
        return arguments

    compile_worker.launch_arguments = with_group  # type: ignore[assignment]
    try:
        values = compile_worker.compile_in_worker(
            job("channel", arch, (64, 64, 128, 4, 3)), disassemble=False
        )
    finally:
        compile_worker.launch_arguments = plain
    return values["registers"], values["spill_bytes"], values["shared_bytes"]


@pytest.mark.compile
def test_a_refused_candidate_is_an_outcome_with_the_reason(
    kernel: KernelInfo, pool: WorkerPool
) -> None:
    jobs = [job("channel", 121, (16, 64, 16, 4, 2)), job("channel", 121, SMALL)]
    refused, fine = compile_many(pool, jobs, kernel, None)
    assert refused.outcome is Outcome.COMPILE_ERROR
    assert "K >= 32" in refused.message
    assert fine.outcome is Outcome.OK


@pytest.mark.compile
def test_a_second_run_compiles_nothing_and_gives_the_same(
    kernel: KernelInfo, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DictCache()
    jobs = [
        job("channel", 121, SMALL),
        job("channel", 121, (16, 64, 16, 4, 2)),
        job("bf16", 121, SMALL),
    ]
    first = list(compile_many(pool, jobs[:2], kernel, cache))
    assert [c.outcome.value for c in first] == ["ok", "compile_error"]
    everything = list(compile_many(pool, [jobs[0], jobs[2], jobs[1]], kernel, cache))
    assert everything[0] == first[0]
    assert everything[2] == first[1]
    assert len(cache.values) == 3

    ran: list[object] = []
    real = pool.map_ordered

    def counting(function: Any, items: Any, timeout_s: float) -> Any:
        return real(function, (ran.append(item) or item for item in items), timeout_s)  # type: ignore[func-returns-value]

    monkeypatch.setattr(pool, "map_ordered", counting)
    again = list(compile_many(pool, [jobs[0], jobs[2], jobs[1]], kernel, cache))
    assert again == everything
    assert ran == []


@pytest.mark.compile
def test_a_timeout_is_believed_by_this_command_alone(
    kernel: KernelInfo, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_module, "_gave_up", {})
    cache, jobs = DictCache(), [job("channel", 90, (128, 128, 128, 8, 3))]
    (late,) = compile_many(pool, jobs, kernel, cache, timeout_s=0.05)
    assert late.outcome is Outcome.TIMEOUT
    assert not cache.values
    (held,) = compile_many(pool, jobs, kernel, cache)
    assert held == late
    # The next command; what an earlier version stored does not count either.
    monkeypatch.setattr(compile_module, "_gave_up", {})
    cache.put(jobs[0].key(kernel), late.as_json())
    (again,) = compile_many(pool, jobs, kernel, cache)
    assert again.outcome is Outcome.OK
    assert Compiled.from_json(cache.values[jobs[0].key(kernel)]) == again


class Answering:
    """A pool whose tasks end as they are told to."""

    def __init__(self, *results: TaskResult[dict[str, Any]]) -> None:
        self.results = results

    def map_ordered(self, function: Any, items: Any, timeout_s: float) -> Any:
        yield from (result for _, result in zip(items, self.results, strict=True))


def test_a_crash_is_not_stored(kernel: KernelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of a process that the system killed because it was out of memory."""
    monkeypatch.setattr(compile_module, "_gave_up", {})
    killed: TaskResult[dict[str, Any]] = TaskResult(TaskStatus.CRASH, message="SIGKILL")
    refused: TaskResult[dict[str, Any]] = TaskResult(TaskStatus.ERROR, message="ValueError: no")
    cache, jobs = DictCache(), [job("channel", 121, SMALL, gemm) for gemm in (1, 2)]
    pool: Any = Answering(killed, refused)
    found = compile_many(pool, jobs, kernel, cache)
    assert [c.outcome for c in found] == [Outcome.CRASH, Outcome.COMPILE_ERROR]
    assert list(cache.values) == [jobs[1].key(kernel)]


@pytest.mark.compile
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(errno.ENOSPC, "no"), "No space left on device; free some, or set TMPDIR"),
        (OSError(errno.EDQUOT, "no"), "quota exceeded"),
        (MemoryError(), "ran out of memory"),
    ],
    ids=["space", "quota", "memory"],
)
def test_what_the_machine_lacks_is_no_fault_of_a_candidate(
    fault: Exception, words: str, kernel: KernelInfo, breakable: WorkerPool
) -> None:
    cache, pool = DictCache(), breakable
    list(pool.map_ordered(break_compiler, [fault], 60))
    with pytest.raises(MissingEnvironmentError, match=f"(?i){words}"):
        list(compile_many(pool, [job("channel", 121, SMALL)], kernel, cache))
    # The compiler's own words, where it is the disk that is full.
    list(pool.map_ordered(break_compiler, [RuntimeError("failed")], 60))
    (failed,) = compile_many(pool, [job("channel", 121, SMALL)], kernel, cache)
    assert failed.outcome is Outcome.COMPILE_ERROR
    list(pool.map_ordered(fill_disk, [0], 60))
    with pytest.raises(MissingEnvironmentError, match="No space left"):
        list(compile_many(pool, [job("bf16", 121, SMALL)], kernel, cache))
    assert len(cache.values) == 1


@pytest.mark.compile
def test_a_killed_assembler_is_a_crash(
    kernel: KernelInfo, breakable: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_module, "_gave_up", {})
    cache, error = DictCache(), RuntimeError("`ptxas` failed with error code -9\nlog")
    list(breakable.map_ordered(break_compiler, [error], 60))
    (killed,) = compile_many(breakable, [job("channel", 121, SMALL)], kernel, cache)
    assert killed.outcome is Outcome.CRASH
    assert not cache.values


def break_compiler(fault: Exception) -> None:
    """In a worker: every launch raises it from now on, and the disk is not full."""
    from autotune.kernels.compile import worker as compile_worker

    def failing(*_: object) -> None:
        raise fault

    vars(compile_worker).update(_launch=failing, shutil=shutil)


def fill_disk(_: int) -> None:
    """In a worker: as if the disk were full from now on."""
    from autotune.kernels.compile import worker as compile_worker

    full = SimpleNamespace(free=0)
    vars(compile_worker)["shutil"] = SimpleNamespace(
        disk_usage=lambda _: full, rmtree=shutil.rmtree
    )


@pytest.mark.compile
def test_results_without_instructions_are_not_cached(kernel: KernelInfo, pool: WorkerPool) -> None:
    cache = DictCache()
    (compiled,) = compile_many(pool, [job("channel", 121, SMALL)], kernel, cache, disassemble=False)
    assert compiled.registers > 0
    assert not compiled.instructions
    assert not cache.values


@pytest.mark.compile
def test_workers_that_cannot_load_the_kernel_end_the_command(
    kernel: KernelInfo, tmp_path: Path
) -> None:
    broken = tmp_path / "fused_moe.py"
    broken.write_text("import a_package_that_is_not_there")
    with (
        compile_pool(1, replace(kernel, path=broken)) as pool,
        pytest.raises(MissingEnvironmentError, match="a_package_that_is_not_there"),
    ):
        list(compile_many(pool, [job("channel", 121, SMALL)], kernel, None))


@pytest.mark.compile
def test_missing_tools_leave_a_message(kernel: KernelInfo, pool: WorkerPool) -> None:
    (result,) = pool.map_ordered(compile_without_tools, [0], 60)
    assert result.value is not None, result.message
    assert result.value["outcome"] == Outcome.OK
    assert "was not read" in result.value["message"]


def compile_without_tools(_: int) -> dict[str, Any]:
    """In a worker: as if cuobjdump were not there."""
    from autotune.kernels.compile import worker as compile_worker

    module = vars(compile_worker)

    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("cuobjdump")

    real = module["run_quietly"]
    module["run_quietly"] = absent
    try:
        return compile_worker.compile_in_worker(job("channel", 121, SMALL), disassemble=True)
    finally:
        module["run_quietly"] = real


def test_fp8_widened_to_fp16_is_recognised() -> None:
    widened = Compiled(Outcome.OK, instructions={"total": 9, "HMMA": 4})
    assert fp16_fallback(widened, shape("channel"))
    assert not fp16_fallback(widened, shape("bf16"))
    assert not fp16_fallback(replace(widened, instructions={"QMMA": 4}), shape("channel"))


def test_opcodes_are_counted_behind_predicates() -> None:
    sass = """
        /*0000*/                   LDC R1, c[0x0][0x37c] ;              /* 0x0000df00ff017b82 */
                                                                        /* 0x000ff00000000800 */
        /*0010*/              @!P0 STL [R1+0x4], R2 ;                   /* 0x00 */
        /*0020*/              @P1  LDGSTS.E.128 [R3], desc[UR6][R4.64] ;
        /*0030*/             @!UP0 QMMA.16832.F32.E4M3.E4M3 R8, R4, R2, R8 ;
        /*1a0b0*/                  QMMA.16832.F32.E4M3.E4M3 R8, R4, R2, R8 ;
    """
    counts = count_instructions(sass)
    assert counts == {"total": 5, "LDGSTS": 1, "STL": 1, "LDL": 0, "QMMA": 2}


def test_the_swap_rule_is_that_of_the_installed_vllm(kernel: KernelInfo, tmp_path: Path) -> None:
    rule = kernel_source.swap_ab_rule(kernel.path, 90)
    assert (rule(16, 64), rule(16, 32), rule(64, 64)) == (True, False, False)
    assert not kernel_source.swap_ab_rule(kernel.path, 121)(16, 64)
    old = tmp_path / "fused_moe.py"  # a version without the rule
    old.write_text("")
    assert not kernel_source.swap_ab_rule(old, 90)(16, 64)


def test_a_launcher_of_another_version_gets_what_it_knows() -> None:
    from autotune.kernels.compile.worker import _matching

    def launcher(A: int, new_flag: bool, use_bias: bool = True) -> None:  # noqa: N803
        """Lacks most parameters, has one without and one with a default."""

    assert _matching(launcher, {"A": 1, "B": 2}) == {"A": 1, "new_flag": False}


@pytest.mark.parametrize(
    ("line", "family"),
    [
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 { %f1 }", "HMMA"),
        ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 { %f1 }", "QMMA"),
        ("wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {%r1}", "QGMMA"),
        ("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {%r1}", "IMMA"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %f1 }", "HMMA"),
    ],
)
def test_ptx_tells_the_family_where_the_machine_code_is_unread(line: str, family: str) -> None:
    """As Triton 3.6.0 and 3.8.0 write it; the disassembler of 3.6.0 does not know sm_121."""
    ptx = f"\t{line};\n\tadd.s32 %r1, %r2, %r3;\n\t{line};\n"
    assert count_families(ptx) == {family: 2}
    assert instructions("no disassembly", ptx)[family] == 2
    read = instructions("        /*0000*/                   QMMA.16832 R4, R8 ;\n", ptx)
    assert (read["QMMA"], read["total"]) == (1, 1)
