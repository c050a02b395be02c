"""vLLM's configuration file: our bytes, and the installed vLLM reading them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError, Candidate
from autotune.kernels.compile.job import compile_pool, kernel_info
from autotune.kernels.config_file import FIELDS, look_up, parse, render, shipped
from autotune.kernels.moe.defaults import default_rows
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme
from autotune.measure.pool import WorkerPool
from tests.support.installed_vllm import InstalledVllm

GOLDEN = (
    Path(__file__).parents[1]
    / "data/golden/E=128,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
)
GEMMA = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)
SHAPES = {
    "fp8": GEMMA,
    "fp8, few experts": MoeShape(8, 1000, 4096, 2, "fp8_w8a8", "fp8", Scheme.TENSOR, None, 8),
    "block fp8": MoeShape(256, 256, 7168, 8, "fp8_w8a8", "fp8", Scheme.BLOCK, (128, 128), 256),
    "narrow block": MoeShape(16, 96, 256, 2, "fp8_w8a8", "fp8", Scheme.BLOCK, (32, 64), 16),
    "bf16": MoeShape(60, 1408, 2048, 4, None, "bf16", Scheme.NONE, None, 60),
    "int8": MoeShape(64, 1024, 2048, 6, None, "int8", Scheme.CHANNEL, None, 64),
}
"""None of them has a file for GB10 in the installed vLLM."""
MS = range(1, 8193)

# Deliberately uneven: even gaps (2-4, 4-6) give ties, which go to the key that comes first.
ROWS = {
    m: Candidate.of(dict(zip(FIELDS, values, strict=True)))
    for m, values in {
        1: (16, 64, 128, 1, 4, 4),
        2: (16, 64, 256, 1, 4, 2),
        4: (16, 128, 128, 1, 4, 3),
        64: (32, 64, 128, 16, 4, 3),
        100: (64, 128, 64, 1, 8, 3),
        1024: (128, 128, 128, 32, 8, 2),
        4096: (128, 256, 64, 64, 8, 2),
    }.items()
}

# What is asked of the real vLLM, in its own process. Its look-up is vLLM's from w1 and w2 on.
SCRIPT = """
import json, logging, sys
import vllm.model_executor.layers.fused_moe.fused_moe as f

logging.basicConfig(level=logging.INFO)
f.get_device_name_as_file_name = lambda: "NVIDIA_GB10"
asked = json.load(open(sys.argv[1]))
answer = {"rows": {}, "ours": f.get_moe_configs(128, 704, "fp8_w8a8")}
for name, s in asked.items():
    w1 = (s["experts"], 2 * s["intermediate"], s["hidden"])
    w2 = (s["experts"], s["hidden"], s["intermediate"])
    answer["rows"][name] = [
        f.try_get_optimal_moe_config(w1, w2, s["topk"], s["dtype"], m, s["block_shape"])
        for m in range(1, 8193)
    ]
json.dump(answer, open(sys.argv[2], "w"))
"""


@dataclass(frozen=True)
class Answer:
    """What the installed vLLM said."""

    file: dict[str, dict[str, int]]
    rows: dict[str, list[dict[str, int]]]
    log: str
    path: Path


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory, installed_vllm: InstalledVllm) -> Answer:
    """Let the installed vLLM read a folder that holds our file for Gemma 4 on a GB10."""
    folder = tmp_path_factory.mktemp("tuned")
    path = folder / GEMMA.config_file_name("NVIDIA_GB10")
    path.write_bytes(render(ROWS, "3.8.0"))
    asked = {name: s.as_json() for name, s in SHAPES.items() if s != GEMMA}
    # The same file is read whatever K and topk are; without it Gemma's defaults are a new E.
    asked |= {"tuned": GEMMA.as_json(), "fp8": GEMMA.as_json() | {"experts": 127}}
    question, reply = folder / "question", folder / "reply"
    question.write_text(json.dumps(asked))
    log = installed_vllm.run(
        SCRIPT, str(question), str(reply), VLLM_TUNED_CONFIG_FOLDER=str(folder)
    )
    said = json.loads(reply.read_text())
    return Answer(said["ours"], said["rows"], log, path)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """One process that has loaded the kernel."""
    with compile_pool(1, kernel_info()) as opened:
        yield opened


@pytest.mark.server
def test_vllm_reads_our_file(vllm: Answer) -> None:
    assert f"Using configuration from {vllm.path} for MoE layer" in vllm.log
    assert {int(m): Candidate.of(dict(row)) for m, row in vllm.file.items()} == ROWS


@pytest.mark.server
def test_our_look_up_is_that_of_vllm_at_every_m(vllm: Answer) -> None:
    rows = parse(vllm.path.read_bytes(), "ours")
    ours = [look_up(rows, m).params for m in MS]
    assert ours == vllm.rows["tuned"]
    # Both sides of a tie, and a tie itself: 3 lies between 2 and 4.
    assert [ours[m - 1] for m in (3, 82, 83)] == [ROWS[m].params for m in (2, 64, 100)]


@pytest.mark.server
@pytest.mark.parametrize("name", SHAPES)
def test_defaults_are_those_of_vllm(vllm: Answer, pool: WorkerPool, name: str) -> None:
    shape = SHAPES[name]
    if shape == GEMMA:
        shape = MoeShape(127, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 127)
    ours = default_rows(pool, kernel_info(), shape, MS)
    # SPLIT_K is 1 throughout, and no field of the file.
    theirs = [{name: row[name] for name in FIELDS} for row in vllm.rows[name]]
    assert [ours[m].params for m in MS] == theirs


@pytest.mark.server
def test_gemmas_defaults(pool: WorkerPool) -> None:
    """As written down by hand from vLLM's ``get_default_config``."""
    expected = {
        32: (16, 64, 128, 1, 4, 4),
        64: (32, 64, 128, 1, 4, 3),
        96: (32, 128, 128, 1, 4, 3),
        128: (64, 128, 128, 1, 4, 3),
        512: (64, 128, 128, 1, 8, 3),
        8192: (128, 128, 128, 1, 8, 3),
    }
    rows = default_rows(pool, kernel_info(), GEMMA, tuple(expected))
    assert {m: tuple(row[name] for name in FIELDS) for m, row in rows.items()} == expected


def test_golden_file() -> None:
    assert GOLDEN.name == GEMMA.config_file_name("NVIDIA_GB10")
    assert render(ROWS, "3.8.0") == GOLDEN.read_bytes()
    assert parse(GOLDEN.read_bytes(), GOLDEN.name) == ROWS


def configs() -> Path:
    return kernel_info().path.parent / "configs"


def test_reads_every_file_that_vllm_ships() -> None:
    files = sorted(configs().iterdir())
    assert len(files) > 300
    for path in files:
        if path.suffix != ".json":
            with pytest.raises(BadInputError, match=f"^{path}: not a fused-MoE configuration"):
                parse(path.read_bytes(), str(path))
            continue
        rows = parse(path.read_bytes(), str(path))
        written = json.loads(path.read_bytes())
        written.pop("triton_version", None)
        assert {str(m): row.params for m, row in rows.items()} == written
        assert list(map(str, rows)) == list(written)


def test_writes_the_bytes_that_vllms_tuner_wrote() -> None:
    """Of the shipped files, those with a version and the six fields, to the last byte."""
    same = 0
    for path in sorted(configs().glob("*.json")):
        written = json.loads(path.read_bytes())
        version = written.pop("triton_version", None)
        fields = {tuple(row) for row in written.values()}
        if version is None or fields != {FIELDS}:
            continue
        ours = render(parse(path.read_bytes(), path.name), version)
        assert ours.decode().split() == path.read_text().split()
        same += ours == path.read_bytes()
    assert same > 40


def test_shipped_files_of_a_shape() -> None:
    names = [name for name, _ in shipped(configs(), GEMMA)]
    assert "E=128,N=704,device_name=NVIDIA_B200,dtype=fp8_w8a8.json" in names
    assert all(name.startswith("E=128,N=704,device_name=") for name in names)
    assert all(name.endswith(",dtype=fp8_w8a8.json") for name in names)
    block = MoeShape(256, 512, 2048, 8, "fp8_w8a8", "fp8", Scheme.BLOCK, (128, 128), 256)
    wanted = "E=256,N=512,device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[128,128].json"
    found = dict(shipped(configs(), block))
    assert found[wanted] == parse((configs() / wanted).read_bytes(), wanted)
    assert all("block_shape=[128,128]" in name for name in found)
    bf16 = MoeShape(8, 14336, 4096, 2, None, "bf16", Scheme.NONE, None, 8)
    assert all("dtype" not in name for name, _ in shipped(configs(), bf16))


def test_a_file_without_rows_is_nothing_to_start_from(tmp_path: Path) -> None:
    """The search looks its first candidates up in these files, of which there is no nearest key."""
    (tmp_path / GEMMA.config_file_name("NVIDIA_GB10")).write_text('{"triton_version": "3.8.0"}')
    assert list(shipped(tmp_path, GEMMA)) == []


powers = st.integers(0, 12).map(lambda n: 2**n)
rows_of_a_file = st.dictionaries(
    st.integers(1, 10**6),
    st.fixed_dictionaries(dict.fromkeys(FIELDS, powers)).map(Candidate.of),
    min_size=1,
)


@given(rows_of_a_file, st.text(max_size=9))
def test_what_is_written_is_read_back(rows: dict[int, Candidate], version: str) -> None:
    data = render(rows, version)
    assert parse(data, "x") == rows
    assert list(parse(data, "x")) == sorted(rows)
    document: dict[str, Any] = json.loads(data)
    assert next(iter(document.items())) == ("triton_version", version)
    assert render(parse(data, "x"), version) == data


@given(rows_of_a_file, st.integers(1, 2 * 10**6))
def test_look_up_takes_the_nearest(rows: dict[int, Candidate], m: int) -> None:
    found = look_up({key: key for key in rows}, m)
    assert abs(found - m) == min(abs(key - m) for key in rows)


def test_ties_go_to_the_key_that_comes_first() -> None:
    assert look_up({2: "a", 4: "b"}, 3) == "a"
    assert look_up({4: "b", 2: "a"}, 3) == "b"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b'{"a": {"BLOCK_SIZE_M": 16}}',
        b'{"1": 16}',
        b'{"1": {"BLOCK_SIZE_M": "wide"}}',
        b'{"1": {"BLOCK_SIZE_M": null}}',
        b'{"1": {"BLOCK_SIZE_M": 16.5}}',
        b'{"1": {"BLOCK_SIZE_M": true}}',
        b"\xff\xfe\x00",
        b'{"1": ' + b"[" * 100_000,
    ],
)
def test_what_is_no_configuration_file(data: bytes) -> None:
    with pytest.raises(BadInputError, match=r"^there\.json: not a fused-MoE configuration file"):
        parse(data, "there.json")


def test_what_cannot_be_written() -> None:
    row = next(iter(ROWS.values()))
    for rows in ({}, {0: row}, {-1: row, 1: row}):
        with pytest.raises(ValueError, match="at least one row"):
            render(rows, "3.8.0")
