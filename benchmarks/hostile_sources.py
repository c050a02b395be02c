"""The inputs of ``benchmarks/hostile_round.py``, by where they come from."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.hostile_files import NO_FILES, TEXTS, VALUES, Make, of


class Place:
    """Where a command runs: ``work`` is its folder, ``precious`` a file that nothing may change."""

    def __init__(self, root: Path) -> None:
        self.root, self.work = root, root / "work"
        self.work.mkdir()
        self.precious = root / "precious"
        self.precious.write_text("keep me")

    def arguments(self, one: Input) -> list[str]:
        return [word.replace("{t}", str(self.work)) for word in one.args]


@dataclass(frozen=True)
class Input:
    """One hostile input and the command that it is given to; ``{t}`` is the command's folder."""

    name: str
    args: list[str]
    make: Callable[[Place], object]
    stdin: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    codes: frozenset[int] = frozenset()
    """Of which one must come; empty for any that is documented."""


def at(name: str, make: Make, *others: tuple[str, str]) -> Callable[[Place], object]:
    """Put something at a path of the folder, and texts beside it."""

    def put(place: Place) -> None:
        for other, text in others:
            (place.work / other).parent.mkdir(parents=True, exist_ok=True)
            (place.work / other).write_text(text)
        (place.work / name).parent.mkdir(parents=True, exist_ok=True)
        make(place.work / name)

    return put


# ------------------------------------------------------------------------------------------
# fused-MoE configuration files

FILE = "E=8,N=256,device_name=NVIDIA_H100_80GB_HBM3.json"
ROW = {
    "BLOCK_SIZE_M": 16,
    "BLOCK_SIZE_N": 64,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 1,
    "num_warps": 4,
    "num_stages": 3,
}
GOOD = json.dumps({"triton_version": "3.8.0", "1": ROW, "64": ROW})


def keyed(key: str) -> str:
    """A file of one row under this key, written as JSON has it."""
    return f'{{"{key}": {json.dumps(ROW)}}}'


MANY = '{"1": %s, %s}' % (  # noqa: UP031
    json.dumps(ROW),
    ",".join(f'"{i}": {{}}' for i in range(2, 60_000)),
)
DOCUMENTS: Mapping[str, str] = {
    "60,000 rows": MANY,
    "60,000 times the same key": "{" + ",".join(['"1": {}'] * 60_000) + "}",
    "a row of 50,000 fields": '{"1": {' + ",".join(f'"f{i}": 1' for i in range(50_000)) + "}}",
    "a key of 5,000 digits": '{"' + "9" * 5000 + '": {}}',
    "a key of 100 KiB": '{"' + "k" * 100_000 + '": {}}',
    "an Arabic key": keyed("\u0661"),
    "a superscript key": keyed("\u00b2"),
    "a key with underscores": keyed("1_0"),
    "a key with a sign": keyed("+1"),
    "a key with blanks": keyed(" 1 "),
    "a key with a newline": keyed("1\\n"),
    "a key of ESC": keyed("\\u001b[2J"),
    "a key of markup": keyed("[/bold][red]"),
    "a field of ESC": json.dumps({"1": ROW | {"\x1b[31m": 1}}),
    "a field of markup": json.dumps({"1": ROW | {"[/nothing]": [1]}}),
    "triton_version of ESC": json.dumps({"triton_version": "\x1b]0;x\x07", "1": ROW}),
    "triton_version of markup": json.dumps({"triton_version": "[/x] PREDICTED", "1": ROW}),
    "triton_version alone": json.dumps({"triton_version": "3.8.0"}),
    "3 and a half": json.dumps({"1": ROW, "3.5": ROW}),
}


def config_files() -> Iterator[Input]:
    commands = {
        "verify": ["verify", f"{{t}}/{FILE}", "--device", "gb10"],
        "compare": ["compare", f"{{t}}/{FILE}", "{t}/good.json", "--study", "none"],
    }
    made: dict[str, Make] = dict(NO_FILES) | {n: of(text) for n, text in TEXTS.items()}
    made |= {name: of(text) for name, text in DOCUMENTS.items()}
    for index, (name, value) in enumerate(VALUES.items()):
        key = list(ROW)[index % len(ROW)]
        row = json.dumps(ROW | {key: "@"}).replace('"@"', value)
        made[f"{key}: {name}"] = of(f'{{"1": {row}}}')
    for name, make in made.items():
        for args in commands.values():
            yield Input(name, args, at(FILE, make, ("good.json", GOOD)))
    for name in (
        "E=0,N=0,device_name=x.json",
        f"E={'9' * 60},N={'9' * 60},device_name=NVIDIA_GB10.json",
        "E=8,N=256,device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[0,0].json",
        f"E=8,N=256,device_name=NVIDIA_GB10,block_shape=[{'9' * 40},1].json",
        "E=8,N=256,device_name=\x1b[2J.json",
        "E=8,N=256,device_name=[bold]x[/nothing].json",
        "E=8,N=256,device_name=x\ny.json",
        "E=8,N=256,device_name=\u202ex.json",
        "E=8,N=256,device_name=" + "x" * 200 + ".json",
        "-E=8.json",
    ):
        put = at(name, of(GOOD), ("good.json", GOOD))
        yield Input(f"name {name[:40]!a}", ["verify", f"{{t}}/{name}"], put)
        yield Input(f"name {name[:40]!a}", ["verify", "{t}"], put)
    for name, make in NO_FILES.items():
        put = at("provenance.json", make, (FILE, GOOD))
        yield Input(f"provenance.json: {name}", ["verify", f"{{t}}/{FILE}"], put)


# ------------------------------------------------------------------------------------------
# landscapes

HEAD = "workload,BLOCK_SIZE_M,BLOCK_SIZE_N,BLOCK_SIZE_K,GROUP_SIZE_M,num_warps,num_stages,"
HEAD += "outcome,value,basis\n"
LINE = "M=1,16,64,128,1,4,3,ok,5.0,measured\n"


def landscapes() -> Iterator[Input]:
    args = ["compare", f"{{t}}/{FILE}", "{t}/b.json", "--landscape"]
    other = json.dumps({"1": ROW | {"BLOCK_SIZE_M": 32}})
    beside = ((FILE, GOOD), ("b.json", other))
    tables: dict[str, bytes] = {
        "no rows": HEAD.encode(),
        "an unknown outcome": (HEAD + LINE.replace(",ok,", ",fine,")).encode(),
        "a value of 1e999": (HEAD + LINE.replace("5.0", "1e999")).encode(),
        "a value of NaN": (HEAD + LINE.replace("5.0", "nan")).encode(),
        "a negative value": (HEAD + LINE.replace("5.0", "-5")).encode(),
        "a value of ESC": (HEAD + LINE.replace("5.0", "\x1b[2J")).encode(),
        "twice": (HEAD + LINE + LINE).encode(),
        "a basis of markup": (HEAD + LINE.replace("measured", "[/x]")).encode(),
        "too many cells": (HEAD + LINE.strip() + ",1" * 1000 + "\n").encode(),
        "a quote without end": (HEAD + '"' + "x" * 100_000).encode(),
        "a hundred thousand columns": ("a," * 100_000 + "\n").encode(),
        "NUL": HEAD.encode() + bytes(1000),
        "not UTF-8": HEAD.encode() + b"\xff\xfe\n",
        "5,000 digits": (HEAD + LINE.replace("16", "9" * 5000)).encode(),
        "the same column twice": (HEAD.replace("num_warps", "num_stages") + LINE).encode(),
    }
    for name, data in tables.items():
        yield Input(name, [*args, "{t}/l.csv"], at("l.csv", of(data), *beside))
    for name, make in NO_FILES.items():
        yield Input(name, [*args, "{t}/l.csv"], at("l.csv", make, *beside))
        yield Input(f"note: {name}", [*args, "{t}/l.csv"],
                    at("l.json", make, *beside, ("l.csv", HEAD + LINE)))  # fmt: skip
    bomb = gzip.compress(bytes(1 << 20)) * (1 << 10)  # members follow each other: 1 GiB
    yield Input("a gzip bomb", [*args, "{t}/l.csv.gz"], at("l.csv.gz", of(bomb), *beside))
    half = of(gzip.compress((HEAD + LINE).encode())[:-9])
    yield Input("half of a gzip", [*args, "{t}/l.csv.gz"], at("l.csv.gz", half, *beside))
    for name, data in TEXTS.items():
        put = at("l.parquet", of(data), *beside)
        yield Input(f"parquet: {name}", [*args, "{t}/l.parquet"], put)
    for url in ("http:/127.0.0.1:9/x.csv", "file:///etc/passwd", "s3:/a/b.csv", "ftp:/a/b.csv"):
        yield Input(f"a URL: {url}", [*args, url], at("x", of(""), *beside))


# ------------------------------------------------------------------------------------------
# model folders

MODEL: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "intermediate_size": 512,
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
FITS = ["--gpu-memory-utilization", "0.1", "--force", "--dry-run"]
READERS = {
    "files": ["files", "{t}/m", "--device", "gb10"],
    "moe": ["moe", "--device", "gb10", "--model", "{t}/m", "--batch-sizes", "1", "--dry-run"],
    "spec": ["spec", "--target", "{t}/m", "--drafter", "ngram", "--gamma", "0,2", *FITS],
}
PATTERNS = (
    "re:(a+)+b", "re:(.|.)*x", "re:((a*))*b", "re:" + ".?" * 40 + "X", "re:" + ".*" * 9 + "X",
    "re:(?x)( . | . ) *x", "re:[", "re:(?P<a>", "re:" + "(" * 500, "re:" + "x" * 5000,
    "re:.{99999999999999999999}", "re:(?i:)*", "re:\\",
)  # fmt: skip


def quantised(value: Any) -> str:
    return json.dumps(MODEL | {"quantization_config": value})


def config_jsons() -> Iterator[tuple[str, Make]]:
    keys = list(MODEL)
    for index, (name, value) in enumerate(VALUES.items()):
        for key in (keys[index % len(keys)], keys[(index * 5 + 3) % len(keys)]):
            text = json.dumps(MODEL | {key: "@"}).replace('"@"', value)
            yield f"{key}: {name}", of(text)
        for key in ("quantization_config", "text_config", "quant_method", "weight_block_size"):
            inner = {"quant_method": "fp8", "weight_block_size": [128, 128], key: "@"}
            whole: dict[str, Any] = (
                {key: "@"} if key.endswith("_config") else {"quantization_config": inner}
            )
            yield f"{key}: {name}", of(json.dumps(MODEL | whole).replace('"@"', value))
    for pattern in PATTERNS:
        groups = {"group_0": {"targets": [pattern], "weights": {"num_bits": 8, "type": "float"}}}
        method = {"quant_method": "compressed-tensors", "config_groups": groups}
        yield f"a pattern {pattern[:20]!a}", of(quantised(method))
        yield f"ignored {pattern[:20]!a}", of(quantised(method | {"ignore": [pattern]}))
    names = [f"model.layers.{i}.mlp" for i in range(30_000)]
    listed = {"quant_method": "fp8", "modules_to_not_convert": names}
    yield "30,000 modules that are not converted", of(quantised(listed))
    nested: dict[str, Any] = dict(MODEL)
    for _ in range(40):
        nested = {"text_config": nested}
    yield "text_config in text_config", of(json.dumps(nested))


BESIDE: Mapping[str, Mapping[str, str]] = {
    "model.safetensors.index.json": {
        "metadata 5": '{"metadata": 5}',
        "total_size of 10^400": '{"metadata": {"total_size": 1' + "0" * 400 + "}}",
        "total_size 1e308": '{"metadata": {"total_size": 1e308}}',
        "total_size below 0": '{"metadata": {"total_size": -1}}',
        "a list of weights": '{"weight_map": [1]}',
        "numbers for files": '{"weight_map": {"a": 5}}',
        "paths for files": '{"weight_map": {"a": "../../x", "b": "/etc/passwd"}}',
        "ESC": '{"weight_map": {"\\u001b[2J": "\\u001b[2J"}}',
        "100,000 tensors": json.dumps({"weight_map": {f"t{i}": "a" for i in range(100_000)}}),
    },
    "tokenizer.json": {
        "no model": "{}",
        "a list": "[]",
        "a vocabulary of numbers": '{"model": {"vocab": 5}}',
        "a vocabulary of pairs of three": '{"model": {"vocab": [[1, 2, 3]]}}',
        "a vocabulary of lists": '{"model": {"vocab": [[[1], 2]]}}',
        "ids that are none": '{"model": {"vocab": {"a": "b", "c": null, "d": [1], "e": 1e30}}}',
        "added tokens without ids": '{"model": {"vocab": {}}, "added_tokens": [{}]}',
        "added tokens that are texts": '{"model": {"vocab": {}}, "added_tokens": "abc"}',
        "added tokens that are objects": '{"model": {"vocab": {}}, "added_tokens": [{"id": {}, '
        '"content": []}]}',
        "200,000 tokens": json.dumps({"model": {"vocab": {f"t{i}": i for i in range(200_000)}}}),
    },
    "tokenizer_config.json": {
        "a template that is a list": '{"chat_template": [1, {"name": 5}]}',
        "a template of code": '{"chat_template": "{{ cycler.__init__.__globals__.os.system(1) }}"}',
        "null": "null",
    },
    "generation_config.json": {
        "a list in a list": '{"eos_token_id": [[1], {"a": 2}, null]}',
        "NaN": '{"eos_token_id": NaN}',
        "a million ids": json.dumps({"eos_token_id": list(range(300_000))}),
    },
    "README.md": {
        "a head without end": "---\n" + "a:\n" * 300_000,
        "many bases": "---\nbase_model:\n" + "- a/b\n" * 100_000 + "---\n",
        "blanks": "---\nbase_model:" + " " * 500_000 + "\n---",
        "names": "---\nbase_model: " + "a-" * 300_000 + "\n---",
        "slashes": "---\nbase_model: " + "a/" * 300_000 + "\n---",
        "ESC": "---\nbase_model: \x1b[2J/x\n---",
    },
    "chat_template.jinja": {"code": "{% for i in range(10**9) %}{% endfor %}"},
    "hf_quant_config.json": {"a list": "[]", "null": "null", "deep": "[" * 5000},
    "model.safetensors": {
        "a header of zero": "\0" * 8,
        "a header of 100 MB": (99_999_999).to_bytes(8, "little").decode("latin-1") + "{",
        "a header of 2^63": "\x7f" * 8,
        "a header of a list": "\x02" + "\0" * 7 + "[]",
        "a header without end": "\xff\0\0\0\0\0\0\0" + "[" * 300,
    },
}


def model_folders() -> Iterator[Input]:
    readers = list(READERS.items())
    for index, (name, make) in enumerate(config_jsons()):
        for command, args in readers if index % 6 == 0 else [readers[index % 3]]:
            yield Input(f"config.json: {name} ({command})", args, at("m/config.json", make))
    good = ("m/config.json", json.dumps(MODEL))
    for name, make in NO_FILES.items():
        for args in READERS.values():
            yield Input(f"config.json: {name}", args, at("m/config.json", make))
    for file, texts in BESIDE.items():
        for name, text in texts.items():
            data = text.encode("latin-1") if file.endswith(".safetensors") else text.encode()
            yield Input(f"{file}: {name}", READERS["spec"], at(f"m/{file}", of(data), good))
        for name, make in list(NO_FILES.items())[::2]:
            yield Input(f"{file}: {name}", READERS["spec"], at(f"m/{file}", make, good))
    yield from drafters()


def drafters() -> Iterator[Input]:
    good = ("m/config.json", json.dumps(MODEL))
    drafter = ["spec", "--target", "{t}/m", "--drafter", "{t}/d", "--gamma", "0,2", *FITS]
    for index, (name, make) in enumerate(config_jsons()):
        if index % 5 == 0:
            yield Input(f"drafter: {name}", drafter, at("d/config.json", make, good))
    for text in ('{"speculators_config": 5}', '{"speculators_config": {"verifier": [1]}}',
                 '{"speculators_config": {"verifier": {"name_or_path": "\\u001b[2J"}}}',
                 '{"eagle_config": {"x": NaN}}', '{"draft_vocab_size": "x"}'):  # fmt: skip
        yield Input(f"drafter: {text[:40]}", drafter, at("d/config.json", of(text), good))


SOURCES: dict[str, Callable[[], Iterator[Input]]] = {
    "config files": config_files,
    "landscapes": landscapes,
    "model folders": model_folders,
}
