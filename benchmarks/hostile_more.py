"""More inputs of ``benchmarks/hostile_round.py``: YAML, prompts, flags, logs, nvidia-smi."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping

from autotune.util.resources import data_root
from benchmarks.hostile_sources import FILE, FITS, MODEL, Input, Place, at
from tests.support.hostile_files import NO_FILES, TEXTS, VALUES, YAMLS, of

GOOD_MODEL = ("m/config.json", json.dumps(MODEL))
MOE = ["moe", "--device", "gb10", "--model", "{t}/m", "--batch-sizes", "1", "--dry-run"]
SPEC = ["spec", "--target", "{t}/m", "--drafter", "ngram", "--gamma", "0,2", *FITS]

# ------------------------------------------------------------------------------------------
# YAML: search spaces and devices

SPACE = (data_root() / "search_spaces/moe/stock.yaml").read_text()
DEVICE = (data_root() / "search_spaces/devices/gb10.yaml").read_text()
SERVING = (data_root() / "search_spaces/spec/gemma-4-26b-a4b-gb10.yaml").read_text()


def yaml_files() -> Iterator[Input]:
    commands = {
        "space": ([*MOE, "--space", "{t}/s.yaml"], SPACE),
        "device": (["moe", *MOE[3:], "--device", "{t}/s.yaml"], DEVICE),
        "spec": ([*SPEC[:5], *FITS, "--space", "{t}/s.yaml"], SERVING),
    }
    kinds = list(commands.items())
    for index, (name, text) in enumerate(YAMLS.items()):
        kind, (args, whole) = kinds[index % 3]
        yield Input(f"{kind}: {name}", args, at("s.yaml", of(text), GOOD_MODEL))
        kind, (args, whole) = kinds[(index + 1) % 3]
        both = whole + "\nextra:\n" + "".join(f"  {line}\n" for line in text[:2000].split("\n"))
        yield Input(f"{kind}, inside: {name}", args, at("s.yaml", of(both), GOOD_MODEL))
    for kind, (args, whole) in commands.items():
        for name, make in list(NO_FILES.items())[::2]:
            yield Input(f"{kind}: {name}", args, at("s.yaml", make, GOOD_MODEL))
        lines = [n for n, line in enumerate(whole.split("\n")) if ":" in line]
        for index, (name, value) in enumerate(VALUES.items()):
            changed = whole.split("\n")
            place = lines[(index * 3) % len(lines)]
            if len(value) < 10_000:
                changed[place] = changed[place].partition(":")[0] + ": " + value
            yield Input(f"{kind}, line {place}: {name}", args,
                        at("s.yaml", of("\n".join(changed)), GOOD_MODEL))  # fmt: skip


# ------------------------------------------------------------------------------------------
# routing, prompts, folders of MoE files, flags


def small_files() -> Iterator[Input]:
    routing = [*MOE, "--predict", "--routing", "{t}/r.json"]
    prompts = [*SPEC, "--prompts", "{t}/p.jsonl"]
    folder = [*SPEC, "--moe-config", "{t}/tuned"]
    for name, value in VALUES.items():
        yield Input(f"routing: {name}", routing, at("r.json", of(f"[1, {value}]"), GOOD_MODEL))
        line = f'{{"prompt": {value}}}\n'
        yield Input(f"prompt: {name}", prompts, at("p.jsonl", of(line), GOOD_MODEL))
        line = f'{{"messages": [{{"role": {value}, "content": {value}}}]}}\n'
        yield Input(f"messages: {name}", prompts, at("p.jsonl", of(line), GOOD_MODEL))
    for name, make in NO_FILES.items():
        yield Input(f"routing: {name}", routing, at("r.json", make, GOOD_MODEL))
        yield Input(f"prompts: {name}", prompts, at("p.jsonl", make, GOOD_MODEL))
        yield Input(f"MoE file: {name}", folder, at(f"tuned/{FILE}", make, GOOD_MODEL))
    for name, data in TEXTS.items():
        yield Input(f"MoE file: {name}", folder, at(f"tuned/{FILE}", of(data), GOOD_MODEL))
    many = "".join(f'{{"prompt": "{i}"}}\n' for i in range(100_000))
    yield Input("100,000 prompts", prompts, at("p.jsonl", of(many), GOOD_MODEL))
    deep = "[" * 60 + "]" * 60
    wide = "".join(f'{{"prompt": "a", "x{i}": {deep}}}\n' for i in range(2_000))
    yield Input("prompts with more than they need", prompts, at("p.jsonl", of(wide), GOOD_MODEL))


ODD = ("", " ", "-", "--", "\x1b[2J", "a\nb", "9" * 5000, "1e999", "NaN", "-1", "٣", "²", "1" * 300,
       "\u202e1", "[/bold]", "${HOME}", "$(touch canary)", "`touch canary`", "; touch canary",
       "../../x", "x" * 100_000, "a," * 50_000, "0-" + "9" * 400, "1=2=3", "=", ",", "'", '"',
       )  # fmt: skip


SPEC_FLAGS = """
--gamma --kv-cache-dtype --gpu-memory-utilization --set --concurrency --slo --budget --server-arg
--env --moe-config --synthetic-acceptance --vllm --image --mount --gpus --docker-arg
--start-timeout --study --quality --header --url --min-gain --prompts --max-tokens --repeats
--context --launcher --objective
"""
MOE_FLAGS = """
--batch-sizes --gamma --concurrency --space --budget --min-gain --routing --study --tp --ep
--experts --dtype --scheme --layer --seed --workers --memory-limit
"""


def flags() -> Iterator[Input]:
    spec = SPEC_FLAGS.split()
    moe = MOE_FLAGS.split()
    put = at(*("m/config.json", of(GOOD_MODEL[1])))
    for index, flag in enumerate(spec):
        for step in (0, 1, 2):
            odd = ODD[(index * 3 + step * 7) % len(ODD)]
            args = [*SPEC, f"{flag}={odd}"]
            yield Input(f"spec {flag} {odd[:20]!a}", args, put)
    for index, flag in enumerate(moe):
        for step in (0, 1, 2):
            odd = ODD[(index * 5 + step * 11) % len(ODD)]
            yield Input(f"moe {flag} {odd[:20]!a}", [*MOE, f"{flag}={odd}"], put)
    for index, args in enumerate(
        (
            ["show"],
            ["report"],
            ["export", "--to", "folder"],
            ["dashboard"],
            ["files", "--device"],
            ["devices", "--json"],
            ["studies", "--db"],
            ["explain"],
            ["verify"],
            ["compare", "x"],
            ["doctor", "--device"],
            ["resume"],
            [],
            ["moe", "--device"],
        )
    ):
        for step in (0, 1, 2, 3):
            odd = ODD[(index * 4 + step * 5) % len(ODD)]
            yield Input(f"{' '.join(args)} {odd[:20]!a}", [*args, odd], put)


# ------------------------------------------------------------------------------------------
# logs

LOGS: Mapping[str, bytes] = {
    "a line of 3 MB after device-side assert": b"RuntimeError: CUDA error: device-side assert "
    + b"x" * (3 << 20),
    "a million short lines": b"INFO 01-01 00:00:00 [x.py:1] a\n" * 300_000,
    "a million empty lines": b"\n" * (4 << 20),
    "carriage returns": b"\r" * (4 << 20),
    "colours": b"\x1b[31m" * 500_000,
    "an escape without end": b"\x1b]0;" + b"x" * (2 << 20),
    "brackets": b"(" * (2 << 20),
    "braces": b'{"' * (1 << 20),
    "json in json": (b'{"log": "' + b'{\\"log\\": ' * 1000 + b"\n") * 300,
    "a traceback without end": b"Traceback (most recent call last):\n" + b'  File "x"\n' * 300_000,
    "5,000 digits": b"GPU KV cache size: " + b"9" * 5000 + b" tokens\n",
    "commas": b"GPU KV cache size: " + b"9," * 200_000 + b" tokens\n",
    "infinite GiB": b"Available KV cache memory: 1e999 GiB\nAvailable KV cache memory: inf GiB\n",
    "NaN GiB": b"Available KV cache memory: nan GiB\n",
    "markup": b"ERROR 01-01 00:00:00 [x.py:1] [/bold][red]ValueError: [/nothing]\n",
    "HTML": b"ValueError: <script>alert(1)</script>-->\n",
    "a command to copy": b"ValueError: run $(touch canary) `touch canary`; touch canary\n",
    "right to left": "ValueError: \u202e\u2066abc\n".encode(),
    "C1": b"ValueError: \xc2\x9b31m\xc2\x9d\n",
    "backspaces": b"ValueError: a\b\b\b\bsafe\n",
    "NUL": bytes(1 << 20),
    "random": bytes(range(256)) * 4000,
    "UTF-16": "ERROR ValueError: x\n".encode("utf-16") * 10_000,
    "UTF-16 that breaks off": b"\xff\xfe\x00\xd8",
    "drafted 10^400": b"SpecDecoding metrics: Mean acceptance length: 1e400, Accepted: "
    + b"9" * 400 + b" tokens, Drafted: 0 tokens\n",
    "drafted 0 of 0": b"SpecDecoding metrics: Mean acceptance length: 0.0, Accepted: 0 tokens, "
    b"Drafted: 0 tokens, Per-position acceptance rate: , Avg Draft acceptance rate: nan%\n",
    "configuration folders": b"Using configuration from /" + b"a/" * 100_000 + b"E=1.json\n",
}  # fmt: skip


def logs() -> Iterator[Input]:
    for name, data in LOGS.items():
        for extra in ([], ["--json"]):
            yield Input(name, ["explain", "{t}/x.log", *extra], at("x.log", of(data)))
        yield Input(f"{name}, piped", ["explain", "-"], at("y", of("")), stdin=data)
    for name, make in NO_FILES.items():
        yield Input(name, ["explain", "{t}/x.log"], at("x.log", make))
    for name, data in TEXTS.items():
        yield Input(name, ["explain", "{t}/x.log"], at("x.log", of(data)))


# ------------------------------------------------------------------------------------------
# what the machine's programs say


def machine() -> Iterator[Input]:
    saids = {
        "nothing": "", "one field": "x", "ESC": "\x1b[2J, b, c, d, e", "quotes": '"' * 1000,
        "numbers of 5,000 digits": ", ".join(["9" * 5000] * 5), "NaN": "nan, nan, nan, nan, nan",
        "markup": "[/bold], <b>, `x`, |, -->", "many": "a, b, c, d, e\n" * 20_000,
        "not UTF-8": "\udcff\udcfe, b, c, d, e", "N/A": "[N/A], [N/A], [N/A], [N/A], [N/A]",
        "a GPU of letters": "NVIDIA GB10, GPU-x, 580, lots, 12.x",
        "below 0": "NVIDIA GB10, GPU-x, 580, -5, -1.-2", "an error": "No devices were found",
    }  # fmt: skip
    for name, text in saids.items():
        for args in (["devices"], ["devices", "--json"], ["doctor"],
                     ["moe", *MOE[3:], "--device", "auto"]):  # fmt: skip

            def put(place: Place, text: str = text) -> None:
                tool = place.work / "bin/nvidia-smi"
                tool.parent.mkdir()
                (place.work / "said").write_bytes(text.encode("utf-8", "surrogateescape"))
                tool.write_text(f"#!/bin/sh\ncat {place.work}/said\n")
                tool.chmod(0o755)
                at("m/config.json", of(GOOD_MODEL[1]))(place)
                shutil.copy("/bin/cat", place.work / "bin/cat")

            yield Input(f"nvidia-smi: {name}", args, put, env={"PATH": "{t}/bin:/usr/bin:/bin"})


SOURCES: dict[str, Callable[[], Iterator[Input]]] = {
    "YAML": yaml_files,
    "small files": small_files,
    "flags": flags,
    "logs": logs,
    "machine": machine,
}
