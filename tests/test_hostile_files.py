"""Every reader of files of others, given what is no file, and files that Hypothesis writes.

It ends in a value or in one line, within its time and memory. The whole round, through every
command, is ``benchmarks/hostile_round.py``.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autotune.core import AutotuneError, BadInputError
from autotune.engine.quantization_names import expression_of
from autotune.kernels.check.verify import Judge, verify
from autotune.kernels.config_file import MOST_ROWS
from autotune.kernels.decide.compare import File
from autotune.kernels.moe.from_model import load_config, shape_from_config
from autotune.kernels.moe.routing import parse_routing
from autotune.machine.devices import Device
from autotune.measure.replay import Landscape
from autotune.serving import parse
from autotune.serving.logs.read import lines_of, read_log
from autotune.serving.measure.prompts import load_prompts
from autotune.serving.measure.stopping import parse_slo
from autotune.serving.pair.checkpoint import load_checkpoint
from autotune.serving.server.explain import explain
from autotune.serving.server.moe_config import digest_of
from autotune.space.space import load_space
from autotune.util import edge, flags
from autotune.util.resources import data_root
from autotune.util.yamlfile import load_yaml
from tests.support.hostile_files import NO_FILES, TEXTS, VALUES, YAMLS

FILE = "E=8,N=256,device_name=NVIDIA_H100_80GB_HBM3.json"
SECONDS = 10.0
"""Of this process, so that a busy machine changes nothing; far above what any of them takes."""
WAITING_S = 60.0
MEMORY = 1 << 30
pd.Series(["Arrow's allocator, which pandas reads with, reserves a gigabyte when it begins"])
MODEL: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


@contextmanager
def limited() -> Iterator[None]:
    """Within, this process may take so much more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def ends(read: Callable[[], object]) -> None:
    """A value, or one line, in time and memory."""
    began, waited = time.process_time(), time.monotonic()
    said = ""
    try:
        with limited():
            read()
    except (AutotuneError, edge.EdgeError) as error:
        said = str(error)
    except OSError as error:
        said = error.strerror or ""  # of a file that cannot be read; its reader adds the name
    assert time.process_time() - began < SECONDS
    assert time.monotonic() - waited < WAITING_S
    assert "\n" not in said
    said.encode()


def in_model(name: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        if name != "config.json":
            (path.parent / "config.json").write_text(json.dumps(MODEL))
        return load_checkpoint(str(path.parent))

    return read


def beside(path: Path) -> object:
    (path.parent / FILE).write_text('{"1": {}}')
    return verify(path.parent / FILE, Judge())


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "verify": (FILE, lambda path: verify(path, Judge())),
    "compare": (FILE, File.read),
    "MoE folder": (FILE, lambda path: digest_of([str(path.parent)])),
    "provenance beside": ("provenance.json", beside),
    "landscape": ("l.csv", Landscape.read),
    "landscape, packed": ("l.csv.gz", Landscape.read),
    "landscape, Parquet": ("l.parquet", Landscape.read),
    "routing": ("r.json", lambda path: parse_routing(str(path))),
    "prompts": ("p.jsonl", lambda path: load_prompts(str(path))),
    "log": ("x.log", lambda path: lines_of(read_log(path))),
    "space": ("s.yaml", lambda path: load_space(str(path), "moe")),
    "device": ("d.yaml", lambda path: load_yaml(path, Device)),
    "config.json": ("config.json", lambda path: load_config(str(path.parent))),
    "target": ("config.json", in_model("config.json")),
    "tokenizer": ("tokenizer.json", in_model("tokenizer.json")),
    "index": ("model.safetensors.index.json", in_model("index")),
    "weights": ("model.safetensors", in_model("weights")),
    "model card": ("README.md", in_model("card")),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_neither_waited_for_nor_read(
    reader: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FIFO, device, link, sparse file of a terabyte, /proc: given to verify, compare, prompts …"""
    monkeypatch.setattr("autotune.serving.logs.read._SILENCE_S", 0.1)
    name, read = READERS[reader]
    NO_FILES[kind](tmp_path / name)
    ends(lambda: read(tmp_path / name))


@pytest.mark.parametrize("reader", READERS)
def test_bytes_of_another_kind(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    for index, data in enumerate(TEXTS.values()):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / name).write_bytes(data)
        ends(lambda path=folder / name: read(path))  # type: ignore[misc]


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_of_every_hostile_kind(name: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(YAMLS[name].encode())
    ends(lambda: load_space(str(path), "moe"))
    ends(lambda: load_yaml(path, Device))
    assert not (tmp_path / "canary").exists()


def test_a_file_of_many_keys_takes_no_time(tmp_path: Path) -> None:
    """200,000 keys: 40 s."""
    path = tmp_path / FILE
    for text in (
        "{" + ",".join(f'"{i}": {{}}' for i in range(1, 80_000)) + "}",
        "{" + ",".join(['"1": {}'] * 100_000) + "}",
    ):
        path.write_text(text)
        began = time.process_time()
        assert verify(path, Judge()).worst() == "error"
        with pytest.raises(BadInputError):
            File.read(path)
        assert time.process_time() - began < SECONDS
    assert MOST_ROWS < 80_000


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(.|.)*x", "((a*))*b", ".?" * 40 + "X", ".*" * 9 + "X", "(?x)( . | . ) *x"],
)
def test_a_pattern_that_may_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(BadInputError, match="for ever"):
        expression_of(pattern)


@pytest.mark.parametrize(
    "pattern", [r".*\.experts\.\d+\.(gate|up)_proj", r"model\.layers\.(0|1)\.mlp.*", r"[)]*x"]
)
def test_the_patterns_of_checkpoints_are_taken(pattern: str) -> None:
    began = time.process_time()
    expression_of(pattern).match("model.layers.0.mlp.experts.17.gate_proj.weight" * 4)
    assert time.process_time() - began < SECONDS


# ------------------------------------------------------------------------------------------
# Hypothesis

FEW = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
fragments = st.sampled_from([value for value in VALUES.values() if len(value) < 10_000])
values = st.recursive(
    fragments,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
        | st.dictionaries(st.sampled_from(list(MODEL)), inner, max_size=3).map(
            lambda parts: "{" + ",".join(f'"{name}": {part}' for name, part in parts.items()) + "}"
        )
    ),
    max_leaves=4,
)
"""Texts of JSON, most of them values where nobody expects them."""


def document(keys: list[str]) -> st.SearchStrategy[str]:
    """A JSON object of some of these keys, now and then one of them twice."""
    pair = st.tuples(st.sampled_from(keys), values).map(lambda pair: f'"{pair[0]}": {pair[1]}')
    return st.lists(pair, max_size=4).map(lambda pairs: "{" + ",".join(pairs) + "}")


def merged(text: str) -> str:
    """The model's configuration with these keys in place of its own, or the text alone."""
    return json.dumps(MODEL)[:-1] + "," + text[1:] if text != "{}" else text


@FEW
@given(document([*MODEL, "text_config", "quant_method", "ignore", "config_groups"]))
def test_a_models_configuration_of_any_shape(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "config.json").write_text(merged(text))
    ends(lambda: shape_from_config(load_config(str(folder))))
    ends(lambda: load_checkpoint(str(folder)))


@FEW
@given(
    st.sampled_from(["tokenizer.json", "tokenizer_config.json", "generation_config.json",
                     "model.safetensors.index.json", "hf_quant_config.json"]),
    document(["model", "vocab", "added_tokens", "chat_template", "eos_token_id", "metadata",
              "total_size", "weight_map", "quantization"]),
)  # fmt: skip
def test_the_files_beside_it_of_any_shape(
    tmp_path_factory: pytest.TempPathFactory, name: str, text: str
) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / name).write_text(text)
    ends(lambda: load_checkpoint(str(folder)))
    ends(lambda: load_config(str(folder)))


@FEW
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_a_header_of_weights_of_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int
) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data)
    ends(lambda: load_checkpoint(str(folder)))


@FEW
@given(document(["1", "64", "01", "triton_version", "BLOCK_SIZE_M", "x"]))
def test_a_tuned_file_of_any_shape(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("f") / FILE
    path.write_text(text)
    ends(lambda: json.dumps(verify(path, Judge()).as_json(), allow_nan=False).encode())
    ends(lambda: File.read(path))


yaml_texts = st.sampled_from([text for text in YAMLS.values() if len(text) < 3000]) | st.text(
    alphabet="ab:- \n\t[]{}&*!|>'\"#%@`?,0.~<\\\x07\x85", max_size=80
)


@FEW
@given(yaml_texts, st.integers(0, 30), st.sampled_from(["moe/stock", "devices/gb10", "spec/gemma"]))
def test_a_space_or_device_with_any_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, line: int, which: str
) -> None:
    (whole,) = (data_root() / "search_spaces").glob(f"{which}*.yaml")
    lines = whole.read_text().split("\n")
    lines[line % len(lines)] = text
    path = tmp_path_factory.mktemp("y") / "s.yaml"
    path.write_text("\n".join(lines), newline="")
    kind = which.partition("/")[0]
    ends(lambda: load_yaml(path, Device) if kind == "devices" else load_space(str(path), kind))


@FEW
@given(document(["prompt", "messages", "role", "content"]))
def test_a_line_of_prompts_of_any_shape(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("p") / "p.jsonl"
    path.write_text(text + "\n")
    ends(lambda: load_prompts(str(path)))


@FEW
@given(st.lists(st.sampled_from([b"ValueError: ", b"Traceback (most recent call last):\n", b"\x1b[",
       b"GPU KV cache size: ", b"9" * 400, b" tokens\n", b"{\"log\": \"", b"\r", b"\n", b"\xff\xfe",
       b"(EngineCore pid=1) ", b"ERROR 01-01 00:00:00 [x.py:1] ", b"1e999", b"nan", b"\0"]),
       max_size=20).map(b"".join))  # fmt: skip
def test_a_log_of_any_bytes(data: bytes) -> None:
    ends(lambda: json.dumps(explain(data).as_json(), allow_nan=False).encode())


@FEW
@example("\n")
@example("a\na=1s")
@given(st.text(max_size=40) | st.text(alphabet="0123456789-,.=:eE+ naif%smh\n", max_size=40))
def test_flags_of_any_text(text: str) -> None:
    """What a person types, or a script for her; the same texts come in requests of JSON."""
    for check in (
        parse.parse_set,
        parse.parse_variable,
        parse.parse_gammas,
        parse.parse_concurrency,
        lambda t: parse.parse_values(t, "--x"),
        parse.parse_rates,
        lambda t: parse.parse_words(t, "--server-arg"),
        parse.check_gpus,
        lambda t: parse.check_image(t, "--image"),
        lambda t: flags.seconds(t, "--budget"),
        lambda t: flags.fraction(t, "--min-gain"),
        flags.mebibytes,
        lambda t: flags.batch_sizes(t, ()),
        flags.study_name,
        parse_slo,
        parse_routing,
    ):
        ends(lambda check=check: check(text))  # type: ignore[misc]


# ------------------------------------------------------------------------------------------
# the commands


@pytest.mark.parametrize(
    "every", [80, pytest.param(1, marks=pytest.mark.nightly)], ids=["some", "all"]
)
def test_hostile_inputs_through_the_commands(every: int) -> None:
    """Every source, through the real command line: one line, a documented exit code, in time."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.hostile_round", f"--every={every}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = [line.split("\t") for line in ran.stdout.strip().split("\n")[1:]]
    assert len(rows) > 30
    assert {row[0] for row in rows} >= {"config files", "YAML", "databases", "checkouts", "logs"}
    assert [row for row in rows if row[-1] != "fine"] == []
