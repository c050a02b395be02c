"""SmolLM2-135M, real text and real acceptance: the best gamma by the kind of prompt.

    python -m benchmarks.real_model OUT.json [--drafter FOLDER] [--kinds rewriting,chat] [--gpu]

One server drafts with ngram (lookup of 2 to 4 tokens), or with a model, and the dial turns gamma
from 0 to 4. Every kind of prompt is loaded in interleaved rounds, with the product's own loads,
counters and gate on outputs. ``tests/support/real_model.py`` makes the model, ``distil.py`` a
drafter.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from autotune.core import Basis, Candidate, Job, Measurement, Outcome, Part, Phase, Trial
from autotune.machine.environment import environment
from autotune.serving.decide.quality import compared
from autotune.serving.dial.dial import Dial
from autotune.serving.measure.column import measure_column
from autotune.serving.measure.load import LoadOptions, Served
from autotune.serving.measure.prompts import load_prompts, prompts_key
from autotune.serving.measure.wire import Wire
from autotune.serving.parse import parse_contexts, parse_gammas
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.server import ServeSettings, start
from tests.serving.real_server import CACHE_ARGS, CPU_ARGS, CPU_ENV, START_S
from tests.support.real_model import smollm2

NGRAM = {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4}
GPU_ARGS = (
    *("--max-model-len", "2048", "--kv-cache-memory-bytes", "3G"),
    *("--attention-backend", "TRITON_ATTN"),
)
GPU_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}


@contextlib.contextmanager
def dialled(
    speculative: Mapping[str, Any],
    gammas: Sequence[int],
    concurrency: int,
    args: Sequence[str],
    env: Mapping[str, str],
) -> Iterator[tuple[Wire, Dial]]:
    """A server of SmolLM2 that drafts each of ``gammas``; its log goes where it fails."""
    with tempfile.TemporaryDirectory() as place, Dial.made() as dial:
        spec = {**speculative, "num_speculative_tokens": max(gammas)}
        static = ServeSettings(str(smollm2()), spec, extra_args=tuple(args), env=dict(env))
        settings = dial.settings(static, gammas, concurrency)
        server = start(LocalLauncher(), settings, Path(place) / "log", START_S)
        try:
            yield Wire(server), dial
        finally:
            server.stop()


def scenario_of(kind: str, args: argparse.Namespace) -> SpecScenario:
    levels = tuple(int(c) for c in args.concurrency.split(","))
    key = prompts_key(load_prompts(kind))
    return SpecScenario(
        "SmolLM2-135M", args.drafter, kind, key, levels, args.tokens,
        ignore_eos=False, chat=True, repeats=args.rounds, waves=args.waves, objective="geomean",
        dial=True, context=parse_contexts(args.context) if args.context else (),
    )  # fmt: skip


def measured(wire: Wire, dial: Dial, kind: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each gamma: rates, acceptance, and what the gate says of the texts."""
    scenario = scenario_of(kind, args)
    jobs = [Job(Candidate.of({"gamma": gamma}), scenario) for gamma in args.gammas]
    options = LoadOptions(load_prompts(kind), check_tokens=args.check_tokens)
    measuring = measure_column(wire, jobs, dial, options)
    while True:
        try:
            part: Part = next(measuring)
            print(kind, part, file=sys.stderr, flush=True)
        except StopIteration as end:
            found = end.value
            break
    trials = [trial_of(job, one) for job, one in zip(jobs, found, strict=True)]
    return [row_of(trial, trials[0]) for trial in trials]


def trial_of(job: Job, served: Any) -> Trial:
    ok = isinstance(served, Served)
    outcome = Outcome.OK if ok else served.outcome
    measurement = Measurement(
        outcome=outcome, basis=Basis.MEASURED, value=served.value if ok else None,
        details=served.details, message="" if ok else str(served),
    )  # fmt: skip
    return Trial(job.candidate, job.workload.key, Phase.SEARCH, 0, measurement)


def row_of(trial: Trial, plain: Trial) -> dict[str, Any]:
    details = trial.measurement.details
    outputs = compared(trial, plain)
    levels = details.get("levels") or details.get("partial", {})
    return {
        "gamma": trial.candidate["gamma"],
        "said": trial.measurement.message,
        "tok_s": {c: level["tok_s"] for c, level in levels.items()},
        "repeats": {c: level["repeats"] for c, level in levels.items()},
        "accepted": {c: level.get("reached") for c, level in levels.items()},
        "tokens_per_step": {c: level.get("acceptance_length") for c, level in levels.items()},
        "by_length": {
            name: {
                c: {
                    "tok_s": level["tok_s"],
                    "repeats": level["repeats"],
                    "accepted": level.get("reached"),
                    "ttft_ms": level["ttft_ms"]["p50"],
                    "prompt_tokens": level["prompt_tokens"] / level["completed"],
                }
                for c, level in levels.items()
            }
            for name, levels in details.get("slices", {}).items()
        },
        "first_ten_tokens_equal": outputs.identical,
        "gate": outputs.judged and {"passes": outputs.judged.passes, "said": outputs.judged.said},
        "no_texts": details.get("no_texts"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--drafter", default="ngram")
    parser.add_argument("--kinds", default="rewriting,chat")
    parser.add_argument("--most", type=int, default=4, help="the largest gamma")
    parser.add_argument("--gammas", help="such as 0,4; all up to --most if not given")
    parser.add_argument("--context", help="tokens of a request, such as 300,900")
    parser.add_argument("--concurrency", default="1")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--check-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waves", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--turn", type=argparse.FileType("w"), default=os.devnull, metavar="FILE",
        help="boot beside others, and measure while no other holds this file's lock",
    )  # fmt: skip
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    args.gammas = list(parse_gammas(args.gammas) if args.gammas else range(args.most + 1))
    model = {"method": "draft_model", "model": str(Path(args.drafter).absolute())}
    speculative = NGRAM if args.drafter == "ngram" else model
    flags = GPU_ARGS if args.gpu else (*CPU_ARGS, *CACHE_ARGS)
    flags = (*flags, "--dtype", args.dtype)
    began = time.monotonic()
    most = max(int(c) for c in args.concurrency.split(","))
    env = GPU_ENV if args.gpu else CPU_ENV
    with dialled(speculative, args.gammas, most, flags, env) as (wire, dial), args.turn as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        start_s = wire.server.start_seconds
        kinds = {kind: measured(wire, dial, kind, args) for kind in args.kinds.split(",")}
    document = {
        "command": " ".join(["python -m benchmarks.real_model", *sys.argv[1:]]),
        "server_args": flags,
        "speculative": {**speculative, "num_speculative_tokens": args.most},
        "start_s": start_s,
        "seconds": time.monotonic() - began,
        "environment": environment(),
        "kinds": kinds,
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
