"""``autotune verify`` over many files: defaults asked of vLLM once, rows compiled where asked."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autotune.core import BadInputError, Candidate, MissingEnvironmentError, Outcome
from autotune.kernels.check.verify import FileFinding, Judge, Level, Verified, verify
from autotune.kernels.compile.job import (
    Compiled,
    CompileJob,
    compile_many,
    compile_pool,
    kernel_info,
)
from autotune.kernels.compile.kernel_source import KernelInfo
from autotune.kernels.compile.processes import COMPILE_TIMEOUT_S
from autotune.kernels.config_file import FIELDS, LIMIT
from autotune.kernels.decide import ladder
from autotune.kernels.decide.compare import Origin, origin_of
from autotune.kernels.moe.defaults import default_rows
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.predict.measurer import compile_jobs
from autotune.measure.pool import WorkerPool
from autotune.measure.replay import Landscape
from autotune.util import edge


@dataclass(frozen=True)
class Options:
    """How to verify.

    Attributes:
        judge: by what.
        landscape: recorded times for the gaps of files of its layer and device; the cost model for
            others, and where it is None.
        compile: whether to compile every row for its device.
        workers: compile processes.
    """

    judge: Judge
    landscape: Landscape | None = None
    compile: bool = False
    workers: int = 1

    @cached_property
    def origin(self) -> Origin:
        """What the landscape's times are of; the same for every file."""
        return Origin() if self.landscape is None else origin_of(self.landscape)


def verify_all(
    paths: Sequence[Path], options: Options, on_file: Callable[[Verified], None]
) -> list[Verified]:
    """Judge files; what needs vLLM is left out where it is not installed, unless asked for.

    Args:
        paths: of the files.
        options: how.
        on_file: told after each.

    Raises:
        MissingEnvironmentError: to compile, vLLM and Triton are needed.
    """
    done = [verify(path, options.judge) for path in paths]
    alike(done)
    kernel = _kernel(options.compile)
    with ExitStack() as stack:
        pool = None
        if kernel is not None:
            for one in done:
                shipped(one, kernel.path.parent / "configs")
            if any(_timed(one, options) for one in done) or options.compile:
                pool = stack.enter_context(compile_pool(options.workers, kernel))
        for one in done:
            _ladder(one, options, kernel, pool)
            if options.compile and kernel is not None and pool is not None:
                _compile(one, kernel, pool)
            on_file(one)
    return done


def _kernel(needed: bool) -> KernelInfo | None:
    try:
        return kernel_info()
    except MissingEnvironmentError:
        if needed:
            raise
        return None


def _timed(done: Verified, options: Options) -> bool:
    """Whether times are known for its rows."""
    if not done.rows or done.shape is None:
        return False
    modelled = done.study_device is not None and not (done.named and done.named.weight_only)
    return _landscape_of(done, options) is not None or modelled


def _landscape_of(done: Verified, options: Options) -> Landscape | None:
    """The landscape given, unless it says that it is of another layer or device."""
    if done.shape is None:
        return None
    layer = options.origin.layer or done.shape
    same_layer = layer.config_file_name("") == done.shape.config_file_name("")
    same_device = options.origin.device in {None, *_names(done)}
    return options.landscape if same_layer and same_device else None


def _names(done: Verified) -> set[str]:
    """What the file's device may be called in a landscape's note."""
    device = done.study_device
    if device is not None:
        return {device.name, *device.gpu_names}
    return set() if done.named is None else {done.named.device.replace("_", " ")}


def _ladder(
    done: Verified, options: Options, kernel: KernelInfo | None, pool: WorkerPool | None
) -> None:
    if not done.rows:
        return
    clock, basis = None, "not known"
    defaults: dict[int, Candidate] = {}
    if _timed(done, options) and done.shape is not None:
        landscape = _landscape_of(done, options)
        if landscape is not None:
            clock, basis = ladder.recorded(landscape), landscape.basis.value
        elif done.study_device is not None:
            clock, basis = ladder.predicted(done.shape, done.study_device), "PREDICTED"
        if options.landscape is not None and landscape is None:
            done.say("note", "landscape-unused", "--landscape is of another layer or device")
        if kernel is not None and pool is not None:
            defaults = default_rows(pool, kernel, done.shape, ladder.asked(list(done.rows)))
    ladder.judge(done, defaults, clock, basis)


def _compile(done: Verified, kernel: KernelInfo, pool: WorkerPool) -> None:
    """Compile both GEMMs of every row for the device, and say what does not fit or spills."""
    if done.shape is None or done.limits is None:
        done.say("note", "not-compiled", "nothing to compile for: device or data type unknown")
        return
    limit, arch = done.limits.shared_memory_per_block, done.limits.arch
    done.findings = [f for f in done.findings if f.code != "estimate"]
    known = {m: row for m, row in done.rows.items() if set(row.params) == set(FIELDS)}
    given: deque[int] = deque()

    def jobs() -> Iterator[CompileJob]:
        assert done.shape is not None  # noqa: S101 - looked at above
        for m, row in known.items():
            for job in compile_jobs(row, MoeWorkload(done.shape, m), arch):
                given.append(m)
                yield job

    results = compile_many(
        pool, jobs(), kernel, None, timeout_s=COMPILE_TIMEOUT_S, disassemble=False
    )
    for number, compiled in enumerate(results):
        _compiled(done, given.popleft(), f"GEMM {1 + number % 2}", compiled, limit)


def _compiled(done: Verified, m: int, gemm: str, compiled: Compiled, limit: int) -> None:
    if compiled.outcome is not Outcome.OK:
        done.say("error", "compile", f"{gemm} does not compile: {compiled.message}", [m])
    elif compiled.shared_bytes > limit:
        said = f"{gemm} needs {compiled.shared_bytes} B of shared memory, the device has {limit} B"
        if not any(f.code == "shared-memory" and m in f.keys for f in done.findings):
            done.say("error", "shared-memory", said, [m])
    elif compiled.spill_bytes:
        done.say("warning", "spills", f"{gemm} spills {compiled.spill_bytes} B per thread", [m])


def grouped(findings: Sequence[FileFinding]) -> list[FileFinding]:
    """Findings of the same text as one, with all their keys."""
    kept: dict[tuple[Level, str, str], list[int]] = {}
    for finding in findings:
        kept.setdefault((finding.level, finding.code, finding.text), []).extend(finding.keys)
    return [FileFinding(*what, tuple(keys)) for what, keys in kept.items()]


def _seems_tuned(path: Path) -> bool:
    """Whether a name is one of a tuned file, or nearly so: other capitals, order or ending."""
    return bool(re.match(r"(N=\d+,)?E=.*\.json(\W.*)?$", path.name, re.IGNORECASE))


def files_in(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the configuration files in the folders named.

    Raises:
        BadInputError: nothing is there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            seen = [file.relative_to(path) for file in path.rglob("*E=*") if _seems_tuned(file)]
            # Not those of a virtual environment or a checkout's innards that happen to lie there.
            shown = [file for file in seen if not any(part.startswith(".") for part in file.parts)]
            inside = [path / file for file in sorted(shown)]
            if not inside:
                raise BadInputError(f"{path}: holds no file E=….json")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise BadInputError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))


def alike(verified: Sequence[Verified]) -> None:
    """Say of files with the same rows that they have them."""
    by_rows: dict[tuple[tuple[int, Candidate], ...], list[Verified]] = {}
    for done in verified:
        if done.rows:
            by_rows.setdefault(tuple(sorted(done.rows.items(), key=lambda r: r[0])), []).append(
                done
            )
    for group in by_rows.values():
        for done in group[1:]:
            done.say("note", "same-rows", f"the same rows as {group[0].path.name}")


def shipped(done: Verified, configs: Path) -> None:
    """Say whether the installed vLLM ships a file of this name."""
    theirs = configs / done.path.name
    if not theirs.is_file() or theirs.resolve() == done.path.resolve():
        return
    same = hashlib.sha256(edge.read_bytes(theirs, LIMIT)).hexdigest() == done.sha256
    how = "the same file" if same else "another file of this name"
    done.say("note", "shipped", f"the installed vLLM ships {how}")
