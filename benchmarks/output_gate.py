"""How often does the gate on outputs see a broken server, and how often does it refuse a sound one?

    python -m benchmarks.output_gate record FILE.json.gz [--dtype bfloat16,float32] [--tokens 192]
    python -m benchmarks.output_gate judge FILE.json.gz…  > RESULT.json

``record`` starts the CPU build of vLLM with SmolLM2-135M (``tests/support/real_model.py``), ngram
drafting and two plugins: the dial of gamma, and ``corrupting_plugin.py``, which breaks speculation
in ways that real faults do. It keeps every text with its scores. ``judge`` asks the product's own
gate about groups of texts, needs no server, and gives rates with their 95 % intervals.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from autotune.serving.dial.dial import Dial
from autotune.serving.gate.judge import judge
from autotune.serving.gate.text import Text
from autotune.serving.gate.texts import texts_of
from autotune.serving.measure.client import Load
from autotune.serving.measure.prompts import Prompt, load_prompts
from autotune.serving.measure.wire import Wire
from benchmarks.corrupting_plugin import FAULTS, IN_PLACE, PATH
from benchmarks.real_model import GPU_ARGS, GPU_ENV, NGRAM, dialled
from tests.serving.real_server import CACHE_ARGS, CPU_ARGS, CPU_ENV

GROUP = 8
AFTER = 10
"""Tokens of a text that a broken server still says right: what ten tokens do not see."""


class Breaker:
    """The folder that brings the faults into a server, and the bytes that turn them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "break"
        source = Path(__file__).with_name("corrupting_plugin.py")
        name = "autotune_breaker"
        (folder / f"{name}.py").write_bytes(source.read_bytes())
        info = folder / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        entry = f"[vllm.general_plugins]\n{name} = {name}:register\n"
        (info / "entry_points.txt").write_text(entry)
        self.path.write_bytes(bytes([0, 0, AFTER]))

    def turn(self, fault: int, percent: int) -> None:
        with self.path.open("r+b") as file:
            file.write(bytes([fault, percent, AFTER]))


@contextlib.contextmanager
def broken_server(dtype: str, args: argparse.Namespace) -> Iterator[tuple[Wire, Dial, Breaker]]:
    """On a GPU the V1 runner is asked for, which the faults are made for, unless there are none."""
    flags = (*(GPU_ARGS if args.gpu else (*CPU_ARGS, *CACHE_ARGS)), "--dtype", dtype)
    env = GPU_ENV if args.gpu else CPU_ENV
    with tempfile.TemporaryDirectory() as place:
        breaker = Breaker(Path(place))
        path = [place, os.environ.get("PYTHONPATH", "")]
        if args.faults:
            env = env | {PATH: str(breaker.path), "PYTHONPATH": os.pathsep.join(filter(None, path))}
            env |= {"VLLM_USE_V2_MODEL_RUNNER": "0"} if args.gpu else {}
            flags += ("--enforce-eager", "--no-async-scheduling")
        gammas = [0, *args.gammas]
        with dialled(NGRAM, gammas, args.concurrency, flags, env) as (wire, dial):
            if args.faults:
                log = wire.server.log
                assert log is not None
                assert IN_PLACE in log.read_text(errors="replace"), "the faults are not in place"
            yield wire, dial, breaker


def prompts(args: argparse.Namespace) -> list[Prompt]:
    """Groups of one kind each, so that a group is what a study asks."""
    kinds = args.kinds.split(",")
    return list(itertools.chain(*(load_prompts(kind)[: args.texts] for kind in kinds)))


def cells_of(args: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Gamma, fault and per cent of broken steps: sound ones first, gamma 0 twice."""
    sound = [(gamma, 0, 0) for gamma in (0, 0, *args.gammas)]
    most = max(args.gammas)
    return sound + [
        (gamma, fault, percent)
        for fault in args.faults
        for percent in args.percents
        for gamma in args.broken_gammas
        if percent == 100 or gamma == most
    ]


def record(args: argparse.Namespace) -> None:
    cells: list[dict[str, Any]] = []
    for dtype in args.dtype.split(","):
        with broken_server(dtype, args) as (wire, dial, breaker):
            for gamma, fault, percent in cells_of(args):
                dial.turn(gamma)
                breaker.turn(fault, percent)
                began = time.perf_counter()
                load = Load(
                    wire.server.url, wire.server.model, prompts(args), 1, 1, 1, cache_salt="g"
                )
                texts = texts_of(wire, load, args.tokens, args.concurrency)
                cell: dict[str, Any] = {"dtype": dtype, "gamma": gamma, "fault": fault}
                cell |= {"percent": percent, "seconds": time.perf_counter() - began}
                print(cell, told(texts), file=sys.stderr, flush=True)
                cells.append(cell | {"texts": [text.as_json() for text in texts]})
                keep(args.file, cells)


def keep(path: Path, cells: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt") as file:
        json.dump(cells, file, separators=(",", ":"))


def groups(cell: dict[str, Any]) -> list[list[Text]]:
    texts = [Text.of_json(text) for text in cell["texts"]]
    return [texts[first : first + GROUP] for first in range(0, len(texts), GROUP)]


def judge_all(args: argparse.Namespace) -> None:
    """By fault and per cent: groups refused, of those whose text the fault changed at all."""
    found: dict[tuple[str, str, int], list[int]] = {}
    healthy: list[dict[str, Any]] = []
    for path in args.files:
        cells = json.loads(gzip.decompress(path.read_bytes()))
        sound = {(c["dtype"], c["gamma"]): c for c in reversed(cells) if not c["fault"]}
        for cell in cells:
            dtype = f"{path.name.split('.')[0]} {cell['dtype']}"
            plain, right = (groups(sound[cell["dtype"], g]) for g in (0, cell["gamma"]))
            for ours, reference, unbroken in zip(groups(cell), plain, right, strict=True):
                judged = judge(ours, reference)
                if not cell["fault"]:
                    healthy.append({"run": dtype, "gamma": cell["gamma"], **asdict(judged)})
                    continue
                if all(a.tokens == b.tokens for a, b in zip(ours, unbroken, strict=True)):
                    continue  # this fault met no draft here
                row = found.setdefault((dtype, FAULTS[cell["fault"]], cell["percent"]), [0, 0])
                row[0] += not judged.passes
                row[1] += 1
    print(json.dumps(document(found, healthy), indent=1))


def document(
    found: dict[tuple[str, str, int], list[int]], healthy: list[dict[str, Any]]
) -> dict[str, Any]:
    refused = sum(one["far"] > one["limit"] for one in healthy)
    every = [sum(column) for column in zip(*found.values(), strict=True)] if found else [0, 0]
    return {
        "group": GROUP,
        "sound": {
            "refused": rate(refused, len(healthy)),
            "tokens": sum(one["tokens"] for one in healthy),
            "far": sum(one["far"] for one in healthy),
            "texts": sum(one["texts"] for one in healthy),
            "equal": sum(one["equal"] for one in healthy),
            "part_at_a_near_tie": sum(one["near"] for one in healthy),
        },
        "broken": {"refused": rate(*every)},
        "by_fault": [
            {"run": run, "fault": fault, "percent_of_steps": percent, "refused": rate(*row)}
            for (run, fault, percent), row in found.items()
        ],
    }


def rate(hits: int, tries: int) -> dict[str, Any]:
    """With the 95 % interval of Clopper and Pearson."""
    if not tries:
        return {"hits": hits, "of": tries}
    from scipy.stats import binomtest  # noqa: PLC0415  (a GPU host that records may lack it)

    low, high = binomtest(hits, tries).proportion_ci(0.95, method="exact")
    ends = {"low": float(low), "high": float(high)}
    return {"hits": hits, "of": tries, "share": hits / tries, **ends}


def told(texts: list[Text]) -> str:
    lost = sorted((v for text in texts for v in text.behind.values()), reverse=True)
    return f"{sum(len(t.tokens) for t in texts)} tokens, {len(lost)} not the best: {lost[:5]}"


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",") if one]


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--dtype", default="bfloat16,float32")
    recording.add_argument("--gammas", type=numbers, default=[1, 2, 4])
    recording.add_argument("--broken-gammas", type=numbers, default=[1, 4])
    recording.add_argument("--faults", type=numbers, default=[1, 2, 3, 4], help="'' for none")
    recording.add_argument("--percents", type=numbers, default=[100, 10])
    recording.add_argument("--tokens", type=int, default=192)
    recording.add_argument("--kinds", default="rewriting,chat")
    recording.add_argument("--texts", type=int, default=16, help="of each kind")
    recording.add_argument("--concurrency", type=int, default=8)
    recording.add_argument("--gpu", action="store_true")
    recording.set_defaults(run=record)
    judging = verbs.add_parser("judge")
    judging.add_argument("files", type=Path, nargs="+")
    judging.set_defaults(run=judge_all)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
