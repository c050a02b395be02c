"""`autotune verify`: what it says of good files, of broken ones, and of all that vLLM ships."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.core import Candidate
from autotune.kernels.check.verify import Judge, Verified, verify
from autotune.kernels.check.verify_all import alike, files_in, grouped, shipped
from autotune.kernels.compile.job import CompileJob, compile_many, compile_pool, specialise
from autotune.kernels.compile.kernel_source import kernel_info
from autotune.kernels.decide import ladder
from autotune.kernels.export.targets import PREDICTED_MARK
from autotune.kernels.moe.constraints import shared_memory_bytes
from autotune.kernels.moe.file_name import Limits, Named, assumed_sizes, parse_name
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.request import STANDARD_LADDER
from autotune.machine.devices import get_device
from autotune.measure.pool import WorkerPool
from tests.kernels.kept_study import FILE, KEPT

GB10 = "E=128,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
GOOD = {
    "BLOCK_SIZE_M": 16,
    "BLOCK_SIZE_N": 64,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 1,
    "num_warps": 4,
    "num_stages": 4,
}
Row = dict[str, Any]
Write = Callable[..., Path]


def row(**changes: Any) -> Row:
    return {name: value for name, value in (GOOD | changes).items() if value is not None}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(content: Any, name: str = GB10) -> Path:
        path = tmp_path / name
        text = content if isinstance(content, str | bytes) else json.dumps(content, indent=4) + "\n"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return file


def whole(**rows: Row) -> dict[str, Any]:
    """A file with the standard keys and these rows."""
    table: dict[str, Any] = {"triton_version": "3.8.0"}
    return table | {str(m): row() for m in STANDARD_LADDER} | rows


def said(path: Path, judge: Judge | None = None) -> list[tuple[str, str]]:
    return [(f.level, f.code) for f in verify(path, judge or Judge()).findings]


def test_nothing_is_said_of_a_good_file(write: Write) -> None:
    assert said(write(whole())) == []


@pytest.mark.parametrize(
    ("content", "expected", "words"),
    [
        ("{", ("error", "json"), "not JSON"),
        ("[" * 100_000, ("error", "json"), "not JSON"),
        (b"\xff\xfe", ("error", "json"), "not JSON"),
        ("[]", ("error", "schema"), "list"),
        ("{}", ("error", "schema"), "no usable row"),
        ({"triton_version": "3.8.0", "many": row()}, ("error", "schema"), '"many"'),
        ({"0": row()}, ("error", "schema"), "below 1"),
        ({"1048577": row()}, ("error", "schema"), "1048576 at most"),
        ({"1": row(), "10000000000000": row()}, ("error", "schema"), "'10000000000000'"),
        ({"1": [1]}, ("error", "schema"), "not a JSON object"),
        ({"1": row(BLOCK_SIZE_M=None)}, ("error", "field"), "BLOCK_SIZE_M is missing"),
        ({"1": row(num_warps=None)}, ("warning", "field"), "num_warps is missing"),
        ({"1": row(num_warps="4")}, ("error", "field"), '"4", not a whole number'),
        ({"1": row(num_warps=True)}, ("error", "field"), "true, not a whole number"),
        ({"1": row(num_stages=2.5)}, ("error", "field"), "2.5"),
        ({"1": row(waves_per_eu=2)}, ("error", "field"), "AMD's compiler"),
        ({"1": row(num_ctas=2)}, ("note", "field"), "num_ctas"),
        ({"1": {"tile_m": 1, "tile_n": 2, "tile_k": 3}}, ("error", "field"), "another kernel"),
        ({"1": row(BLOCK_SIZE_N=48)}, ("error", "value"), "not a power of two"),
        ({"1": row(num_warps=64)}, ("error", "value"), "over 1024 threads"),
        ({"1": row(num_stages=0)}, ("error", "value"), "below 1"),
        ({"1": row(GROUP_SIZE_M=0)}, ("error", "value"), "below 1"),
        ({"1": row(BLOCK_SIZE_K=16)}, ("error", "value"), "below 32"),
        ({"1": row(BLOCK_SIZE_N=256, num_stages=5)}, ("error", "shared-memory"), "101376"),
        (
            {"1": row(BLOCK_SIZE_M=128, BLOCK_SIZE_N=256, BLOCK_SIZE_K=64, num_stages=2)},
            ("warning", "registers"),
            "do not fit",
        ),
        ('{"1": %s, "1": %s}' % ((json.dumps(row()),) * 2), ("error", "duplicate"), "twice"),
        ({"1": row(), "01": row()}, ("error", "duplicate"), '"01"'),
        ({"2": row(), "1": row()}, ("warning", "order"), "ascend"),
        ({"1": row()}, ("note", "triton"), "which Triton"),
        ({"triton_version": 3, "1": row()}, ("warning", "triton"), "3, not a text"),
        ({"1": row(), "triton_version": "3.8.0"}, ("note", "form"), "first"),
        (
            {"triton_version": f"3.8.0 ({PREDICTED_MARK})", "1": row()},
            ("warning", "predicted"),
            "PREDICTED, not measured",
        ),
        (json.dumps(whole()), ("note", "form"), "indent 4"),
    ],
)
def test_what_is_said_of_a_bad_file(
    content: Any, expected: tuple[str, str], words: str, write: Write
) -> None:
    found = [f for f in verify(write(content), Judge()).findings if (f.level, f.code) == expected]
    assert found
    assert any(words in f.text for f in found)


def test_a_name_without_a_type_may_be_of_int8_weights(write: Write) -> None:
    """They need half of bf16's shared memory, and vLLM calls their files the same."""
    fits_int8 = {"1": row(BLOCK_SIZE_M=64, BLOCK_SIZE_N=128, BLOCK_SIZE_K=128, num_stages=4)}
    neither = {"1": row(BLOCK_SIZE_M=64, BLOCK_SIZE_N=256, BLOCK_SIZE_K=256, num_stages=4)}
    plain = "E=128,N=704,device_name=NVIDIA_GB10.json"
    found = verify(write(fits_int8, plain), Judge()).findings
    (about,) = (f for f in found if f.code == "shared-memory")
    assert about.level == "warning"
    assert about.text.endswith("int8 ones, whose files have the same name, fit")
    assert ("error", "shared-memory") in said(write(neither, plain))
    named = plain.replace(".json", ",dtype=bf16.json")
    assert ("error", "shared-memory") in said(write(fits_int8, named))


def test_the_device_of_the_name_decides(write: Write) -> None:
    large = whole(**{"64": row(BLOCK_SIZE_M=64, BLOCK_SIZE_N=256)})
    assert ("error", "shared-memory") in said(write(large))
    on_h200 = write(large, FILE)
    assert said(on_h200) == []
    assert ("error", "shared-memory") in said(on_h200, Judge(get_device("gb10")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.json", ("warning", "name")),
        ("E=0,N=1,device_name=X.json", ("warning", "name")),
        ("E=8,N=64,device_name=NVIDIA_GB10,dtype=float8.json", ("warning", "never-read")),
        ("E=8,N=64,device_name=NVIDIA_GB10,dtype=fp8_w8a8,x=1.json", ("warning", "never-read")),
        ("E=8,N=64,device_name=Acme_Abacus.json", ("note", "device")),
        ("E=8,N=64,device_name=AMD_Instinct_MI300X.json", ("note", "device")),
        (
            "E=8,N=64,device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[128,128].json",
            ("warning", "shape"),
        ),
        (
            "E=8,N=64,device_name=AMD_X,dtype=int4_w4a16,backend=flydsl.json",
            ("note", "other-kernel"),
        ),
    ],
)
def test_names(name: str, expected: tuple[str, str], write: Write) -> None:
    assert expected in said(write(whole(), name))


def test_a_name_taken_apart() -> None:
    name = "E=512,N=512,device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[128,128].json"
    assert parse_name(name) == Named(512, 512, "NVIDIA_GB10", "fp8_w8a8", (128, 128), None, "")
    assert parse_name(name + "x") is None
    gemma = parse_name(GB10)
    assert gemma is not None
    assert assumed_sizes(gemma) == (2816, 8)
    assert gemma.known_device() == get_device("gb10")


@pytest.mark.parametrize(
    ("device", "limits"),
    [
        ("NVIDIA_A100-SXM4-80GB", Limits(80, 166912)),
        ("NVIDIA_GeForce_RTX_4090", Limits(89, 101376)),
        ("NVIDIA_L20", Limits(89, 101376)),
        ("NVIDIA_L20Y", None),
        ("NVIDIA_H20-3e", Limits(90, 232448)),
        ("NVIDIA_GB200", Limits(100, 232448)),
        ("NVIDIA_RTX_PRO_6000_Blackwell_Server_Edition", Limits(120, 101376)),
        ("AMD_Instinct_MI300X", None),
    ],
)
def test_devices_that_have_no_file_of_their_own(device: str, limits: Limits | None) -> None:
    named = parse_name(f"E=8,N=64,device_name={device}.json")
    assert named is not None
    assert named.limits() == limits


@pytest.mark.compile
def test_shared_memory_on_ampere_and_ada_is_exact(pool: WorkerPool) -> None:
    """The arithmetic was made for sm_90 and sm_12x; these files are judged by it too."""
    fp8 = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)
    bf16 = MoeShape(128, 704, 2816, 8, None, "bf16", Scheme.NONE, None, 128)
    tiles = ((16, 64, 128, 4, 4), (128, 128, 64, 8, 3), (32, 32, 64, 4, 2))
    jobs = [
        CompileJob(shape, arch, *tile, 1, specialise(shape, 64))
        for arch, shape in ((80, bf16), (89, fp8), (89, bf16))
        for tile in tiles
    ]
    results = compile_many(pool, jobs, kernel_info(), None, disassemble=False)
    for job, compiled in zip(jobs, results, strict=True):
        params = {
            "BLOCK_SIZE_M": job.block_m,
            "BLOCK_SIZE_N": job.block_n,
            "BLOCK_SIZE_K": job.block_k,
            "num_warps": job.num_warps,
            "num_stages": job.num_stages,
        }
        assert compiled.shared_bytes == shared_memory_bytes(params, job.shape, job.arch)


def test_files_with_the_same_rows(write: Write) -> None:
    here = [verify(write(whole(), name), Judge()) for name in (GB10, FILE, "other.json")]
    here[2].rows[1] = Candidate.of(row(num_stages=3))
    alike(here)
    assert [f.text for f in here[1].findings] == [f"the same rows as {GB10}"]
    assert not any(f.code == "same-rows" for one in (here[0], here[2]) for f in one.findings)


def test_a_file_that_vllm_ships(write: Write) -> None:
    configs = kernel_info().path.parent / "configs"
    name = "E=128,N=704,device_name=NVIDIA_B200,dtype=fp8_w8a8.json"
    for content, word in ((whole(), "another file"), ((configs / name).read_bytes(), "the same")):
        done = verify(write(content, name), Judge())
        shipped(done, configs)
        assert any(f.code == "shipped" and word in f.text for f in done.findings)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 16, 64, 128, 2**60, 10**30, 2.0, True, None, "8"])
ROWS = st.dictionaries(st.sampled_from([*GOOD, "SPLIT_K", "waves_per_eu"]), NUMBERS)
FILES = JSON | st.dictionaries(
    st.sampled_from(
        ["1", "2", "08", "-1", "x", "triton_version", "1_0", "²", "9" * 13, "9" * 5000]
    ),
    ROWS | JSON,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=FILES, name=st.sampled_from([GB10, FILE, "x.json"]))
def test_whatever_a_file_holds_is_judged(content: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(content))
    done = verify(path, Judge())
    if done.rows and done.shape is not None and done.study_device is not None:
        ladder.judge(done, {}, ladder.predicted(done.shape, done.study_device), "PREDICTED")
    assert json.dumps(done.as_json())
    assert done.rows or done.worst() == "error"


# ------------------------------------------------------------------------------- between the keys


def candidate(**changes: int) -> Candidate:
    return Candidate.of(GOOD | changes)


def test_what_the_look_up_costs_between_keys() -> None:
    slow, fast = candidate(num_stages=2), candidate()

    def clock(m: int, one: Candidate) -> float | None:
        return {slow: 2.0, fast: 1.0}.get(one)

    rows = {16: slow, 64: fast}
    found = ladder.losses(rows, {}, clock)
    assert found[0].share == pytest.approx(1.0)
    # At 40 both keys are as near, and the first in the file is taken.
    assert {loss.m for loss in found} == {1, 2, 4, 8, 24, 32, 40} - {1, 2, 4, 8}
    assert {loss.against for loss in found} == {"the row of key 64"}
    with_default = ladder.losses(rows, {1: fast}, clock)
    assert [loss.against for loss in with_default if loss.m == 1] == ["vLLM's default"]
    assert ladder.gaps([1, 2, 4, 8, 16, 24, 64, 128]) == [(24, 64)]


def test_a_file_with_gaps(write: Write) -> None:
    path = write({"triton_version": "3.8.0", "1": row(), "512": row()})
    done = verify(path, Judge())
    ladder.judge(done, {}, None, "not known")
    assert [f.text for f in done.findings] == [
        "no key between 1 and 512; what the look-up costs there is not known",
        "no key above 512; what the look-up costs there is not known",
    ]
    done = verify(path, Judge())
    assert done.shape is not None
    assert done.study_device is not None
    clock = ladder.predicted(done.shape, done.study_device)
    better = candidate(BLOCK_SIZE_M=64, num_stages=3)
    ladder.judge(done, {4096: better}, clock, "PREDICTED")
    (top,) = [f for f in done.findings if f.keys == (512,)]
    assert top.level == "warning"
    assert "PREDICTED to cost up to" in top.text
    assert "at M=4096: it takes key 512, and vLLM's default is faster" in top.text


# ----------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """The process that a command would start to ask for vLLM's defaults, here for all of them."""
    with compile_pool(1, kernel_info()) as opened:
        yield opened


@pytest.fixture
def run(
    in_process: Callable[..., tuple[int, str, str]],
    pool: WorkerPool,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setattr(
        "autotune.kernels.check.verify_all.compile_pool", lambda *_: nullcontext(pool)
    )
    return partial(in_process, "verify")


@pytest.mark.compile
def test_every_file_that_vllm_ships(run: Callable[..., tuple[int, str, str]]) -> None:
    configs = kernel_info().path.parent / "configs"
    code, out, err = run(str(configs), "--json")
    done = json.loads(out)
    assert err == ""
    assert len(done) == len(list(configs.glob("*.json"))) > 300
    by_name = {Path(one["file"]).name: one for one in done}
    errors = {name: one for name, one in by_name.items() if one["worst"] == "error"}
    # vLLM never reads it, and its rows do not fit as bf16, which its name says.
    assert set(errors) == {"E=128,N=8960,device_name=NVIDIA_H100_80GB_HBM3,dtype=bf16.json"}
    assert code == 1
    for one in done:
        for finding in one["findings"]:
            assert finding["text"]
            assert finding["level"] in {"error", "warning", "note"}
    own = {
        "E=256,N=512,device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[128,128].json": "GB10",
        "E=512,N=512,device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[128,128].json": "GB10",
        "E=128,N=704,device_name=NVIDIA_RTX_PRO_6000_Blackwell_Workstation_Edition,"
        "dtype=fp8_w8a8.json": "RTX_PRO_6000",
    }
    for name, device in own.items():
        assert device in by_name[name]["device"]
        assert by_name[name]["worst"] != "error"
        assert not any(f["code"] == "device" for f in by_name[name]["findings"])
    levels = Counter(one["worst"] for one in done)
    assert levels["warning"] < 25


@pytest.mark.compile
def test_rows_compiled_for_their_device(
    in_process: Callable[..., tuple[int, str, str]], write: Write
) -> None:
    run = partial(in_process, "verify")  # with processes of its own
    # 256 sums per thread: more than a thread has registers.
    spilling = row(BLOCK_SIZE_M=128, BLOCK_SIZE_N=256, BLOCK_SIZE_K=64, num_stages=2)
    path = write({"triton_version": "3.8.0", "1": row(), "64": spilling})
    code, out, _ = run(str(path), "--compile", "--workers", "1", "--json")
    (done,) = json.loads(out)
    spills = [f for f in done["findings"] if f["code"] == "spills"]
    assert {m for f in spills for m in f["keys"]} == {64}
    assert all("B per thread" in f["text"] for f in spills)
    assert code == 0
    assert any(f["code"] == "gap" for f in done["findings"])


@pytest.mark.compile
def test_a_warning_is_an_error_to_who_is_strict(
    run: Callable[..., tuple[int, str, str]], write: Write
) -> None:
    path = write({"triton_version": "3.8.0", "1": row(), "64": row(), "2": row()})
    assert [run(str(path), *flags)[0] for flags in ((), ("--strict",))] == [0, 1]


@pytest.mark.compile
def test_times_from_a_landscape(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    document = json.loads((KEPT / FILE).read_text())
    path = tmp_path / FILE
    kept = {key: document[key] for key in ("triton_version", "4", "4096")}
    path.write_text(json.dumps(kept, indent=4) + "\n")
    landscape = KEPT.parent / "landscape-h200-e128-n704-channel.csv.gz"
    _, out, _ = run(str(path), "--landscape", str(landscape))
    assert "measured to cost up to" in out
    assert "no key between 4 and 4096" in out
    assert "1 file:" in out
    for name in (FILE.replace("N=704", "N=768"), FILE.replace("H200", "H100_80GB_HBM3")):
        other = tmp_path / "other" / name
        other.parent.mkdir(exist_ok=True)
        other.write_text(path.read_text())
        _, out, _ = run(str(other), "--landscape", str(landscape))
        assert "PREDICTED to cost up to" in out  # its times are another layer's, or device's
        assert "--landscape is of another layer or device" in out
    unknown = tmp_path / "other" / FILE.replace("H200", "A100-SXM4-80GB")
    unknown.write_text(path.read_text())
    _, out, _ = run(str(unknown), "--landscape", str(landscape))
    assert "measured" not in out


@pytest.mark.compile
def test_a_file_that_cannot_be_read_does_not_end_the_rest(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / FILE).write_bytes((KEPT / FILE).read_bytes())
    (tmp_path / FILE.replace("E=128", "E=64")).mkdir()  # not even root reads a folder
    code, out, _ = run(str(tmp_path), "--json")
    assert code == 1
    found = {Path(done["file"]).name[:5]: done["findings"] for done in json.loads(out)}
    assert [f["code"] for f in found["E=64,"]] == ["unreadable"]
    assert not any(f["code"] == "unreadable" for f in found["E=128"])


@pytest.mark.compile
def test_files_in_hidden_folders_are_nobody_s_to_verify(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    hidden = tmp_path / ".venv" / "configs"
    hidden.mkdir(parents=True)
    (hidden / FILE).write_bytes((KEPT / FILE).read_bytes())
    code, _, err = run(str(tmp_path))
    assert code == 2
    assert "holds no file" in err
    (tmp_path / FILE).write_bytes((KEPT / FILE).read_bytes())
    assert [done["file"] for done in json.loads(run(str(tmp_path), "--json")[1])] == [
        str(tmp_path / FILE)
    ]
    assert json.loads(run(str(hidden), "--json")[1]), "named itself it is verified"


@pytest.mark.compile
def test_several_files_show_what_matters(
    run: Callable[..., tuple[int, str, str]], write: Write, tmp_path: Path
) -> None:
    write(whole())
    bad = write({"1": row(num_warps=0)}, "E=8,N=64,device_name=NVIDIA_GB10.json")
    code, out, _ = run(str(tmp_path))
    assert code == 1
    assert "num_warps=0 is not a power of two" in out
    assert str(bad) in out
    assert GB10 not in out
    assert "2 files:" in out


def test_files_are_found_once(tmp_path: Path, write: Write) -> None:
    path = write(whole())
    assert files_in([path, tmp_path]) == [path]
    (tmp_path / "provenance.json").write_text("{}")
    assert files_in([tmp_path]) == [path], "what lies beside a result is no configuration"
    inner = tmp_path / "configs" / "triton_3_8_0" / path.name  # as in SGLang's folders
    inner.parent.mkdir(parents=True)
    inner.write_bytes(path.read_bytes())
    assert files_in([tmp_path / "configs"]) == [inner]


def test_findings_of_one_text_are_one() -> None:
    done = Verified(Path("x"))
    done.say("note", "a", "t", [1])
    done.say("note", "b", "u", [2])
    done.say("note", "a", "t", [3])
    assert [(f.text, f.keys) for f in grouped(done.findings)] == [("t", (1, 3)), ("u", (2,))]


@pytest.mark.parametrize(
    ("left", "warned"),
    [
        ('{"basis": "predicted"}', True),
        ('{"basis": "measured"}', False),
        ("[]", False),
        ("{", False),
        ("\xff", False),
    ],
)
def test_a_prediction_is_told_by_what_lies_beside_it(write: Write, left: str, warned: bool) -> None:
    path = write({"triton_version": "3.8.0", "1": row()})
    (path.parent / "provenance.json").write_bytes(left.encode("latin-1"))
    assert ("predicted" in [finding.code for finding in verify(path, Judge()).findings]) == warned


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("E=8,N=64,device_name=NVIDIA_H200_NVL.json", "E=8,N=64,device_name=NVIDIA_H200.json"),
        (
            "E=8,N=64,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
            "E=8,N=64,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json",
        ),
        ("E=8,N=64,device_name=NVIDIA GB10.json", "E=8,N=64,device_name=NVIDIA_GB10.json"),
        (
            "E=8,N=64,device_name=NVIDIA_GB10,dtype=int8_w8a8,per_channel_quant=True.json",
            "E=8,N=64,device_name=NVIDIA_GB10.json",
        ),
        (
            "E=8,N=64,device_name=NVIDIA_GB10,dtype=bf16.json",
            "E=8,N=64,device_name=NVIDIA_GB10.json",
        ),
        (
            "E=8,N=64,device_name=NVIDIA_GB10,dtype=float8.json",
            "E=8,N=64,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json",
        ),
        ("E=8,N=64,device_name=NVIDIA_GB10,dtype=fp8_w8a8_down.json", None),
        ("E=8,N=64,device_name=NVIDIA_GB10.json", ""),
        ("E=8,N=64,device_name=NVIDIA_GH200_480GB.json", ""),
    ],
)
def test_the_name_that_vllm_looks_for(name: str, looked_for: str | None) -> None:
    named = parse_name(name)
    assert named is not None
    said = named.never_read(name)
    if looked_for == "":
        assert said is None
        return
    assert said is not None
    assert named.looked_for == looked_for
    assert (looked_for is None) or said.endswith(f"it looks for {looked_for}")
    assert ("SGLang" in said) == ("_down" in name or "per_channel" in name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "E=8,N=64,device_name=NVIDIA-GB10.json",
            "looks for E=8,N=64,device_name=NVIDIA_GB10.json",
        ),
        ("E=8,N=64,device_name=GB10.json", "looks for E=8,N=64,device_name=NVIDIA_GB10.json"),
        (
            "E=8,N=64,device_name=nvidia_h200.json",
            "looks for E=8,N=64,device_name=NVIDIA_H200.json",
        ),
        ("E=8,N=64,device_name=NVIDIA_GB10.JSON", "not a name that vLLM looks for"),
        ("E=8,N=64,device_name=NVIDIA_GB10.json.bak", "not a name that vLLM looks for"),
        ("N=64,E=8,device_name=NVIDIA_GB10.json", "not a name that vLLM looks for"),
        ("triton_3_4_0/E=8,N=64,device_name=NVIDIA_GB10.json", "never of one inside"),
        (
            "triton_3_4_0/E=8,N=64,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json",
            "made with Triton 3.4.0, which runs fp8 on the fp16 tensor cores",
        ),
        (
            "E=8,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[128,128].json",
            "refines this block since 0.32 and looks for "
            "E=8,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[64,64].json",
        ),
    ],
)
def test_a_file_that_lies_or_is_named_almost_right(name: str, said: str, tmp_path: Path) -> None:
    row = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1}
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"1": row | {"num_warps": 4, "num_stages": 2}}))
    assert files_in([tmp_path]) == [path]
    found = [f.text for f in verify(path, Judge()).findings if f.level == "warning"]
    assert any(said in text for text in found), found
