"""The load client against `vllm bench serve`: the same requests on the same server, in turns.

Usage: python benchmarks/client.py [RESULT.json] [ROUNDS]. Bound: medians within 3 %.

Both clients take turns on one real server (a tiny Qwen3, CPU build of vLLM), so that a machine that
is slower for a while is slower for both. vLLM's client is its own code with its own command line,
kept in one process so that its 15 s of imports are paid once. Compared are the medians over the
rounds. Prefix caching is off: each request is prefilled anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from autotune.environment import environment
from autotune.spec.client import Load, run_load
from autotune.spec.launchers import LocalLauncher
from autotune.spec.prompts import CATEGORIES, Prompt, load_prompts
from autotune.spec.server import Server, start

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.spec.real_server import CACHE_ARGS, START_S, cpu_settings
from tests.spec.tiny_models import make_qwen3

BOUND = 0.03
TOKENS = 64
REQUESTS = {1: 12, 4: 48, 8: 96, 32: 256}
METRICS = {
    "tok_s": "output_throughput",
    "ttft_ms.mean": "mean_ttft_ms",
    "ttft_ms.p50": "p50_ttft_ms",
    "ttft_ms.p99": "p99_ttft_ms",
    "tpot_ms.mean": "mean_tpot_ms",
    "tpot_ms.p50": "p50_tpot_ms",
    "tpot_ms.p99": "p99_tpot_ms",
    "itl_ms.mean": "mean_itl_ms",
    "itl_ms.p50": "p50_itl_ms",
    "itl_ms.p99": "p99_itl_ms",
}
BOUNDED = ("tok_s", "tpot_ms.mean", "itl_ms.mean")
"""What the bound is for; the rest is shown. Percentiles of a busy machine scatter by more."""


def serve_their_client() -> None:
    """In a process of its own: one list of arguments in a line, one result out."""
    from vllm.benchmarks.serve import add_cli_args, main  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    for line in sys.stdin:
        with contextlib.redirect_stdout(io.StringIO()):
            result = main(parser.parse_args(json.loads(line)))
        wanted = {name: result[name] for name in ("failed", *METRICS.values())}
        sys.stdout.write(f"RESULT {json.dumps(wanted)}\n")
        sys.stdout.flush()


class TheirClient:
    """`vllm bench serve`, asked again and again."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--their-client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            text=True,
        )

    def run(self, load: Load, tokenizer: Path, folder: Path) -> dict[str, float]:
        args = their_args(load, tokenizer, folder)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(args) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
                assert result["failed"] == 0
                return {mine: result[theirs] for mine, theirs in METRICS.items()}
        raise RuntimeError(f"vllm bench serve died, see {self._log.name}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def their_args(load: Load, tokenizer: Path, folder: Path) -> list[str]:
    dataset = folder / f"{load.requests}.jsonl"
    if not dataset.exists():
        prompts = [load.prompts[i % len(load.prompts)].text for i in range(load.requests)]
        dataset.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    path = load.endpoint().removeprefix(load.url)
    return [
        *("--backend", "openai-chat" if load.chat else "openai", "--endpoint", path),
        *("--base-url", load.url, "--model", load.model, "--tokenizer", str(tokenizer)),
        *("--dataset-name", "custom", "--dataset-path", str(dataset), "--disable-shuffle"),
        *("--skip-chat-template", "--custom-output-len", str(load.max_tokens)),
        *("--num-prompts", str(load.requests), "--max-concurrency", str(load.concurrency)),
        *("--temperature", "0", "--ignore-eos", "--disable-tqdm"),
        *("--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,99"),
    ]


def our_run(load: Load) -> dict[str, float]:
    result = run_load(load)
    assert not result.errors(), result.errors()
    summary = result.summary().as_json()
    found = {"client_cpu_share": result.client_cpu_s / result.duration_s}
    for name in METRICS:
        key, _, part = name.partition(".")
        found[name] = summary[key][part] if part else summary[key]
    return found


def compare(
    server: Server, load: Load, theirs: TheirClient, tokenizer: Path, folder: Path, rounds: int
) -> dict[str, Any]:
    run_load(load)  # the first load of a shape is slow
    mine: list[dict[str, float]] = []
    other: list[dict[str, float]] = []
    for number in range(rounds):
        for ours_now in (number % 2 == 0, number % 2 == 1):
            if ours_now:
                mine.append(our_run(load))
            else:
                other.append(theirs.run(load, tokenizer, folder))
    row: dict[str, Any] = {
        "endpoint": load.endpoint().removeprefix(server.url),
        "concurrency": load.concurrency,
        "requests": load.requests,
        "client_cpu_share": round(statistics.median(r["client_cpu_share"] for r in mine), 4),
        "metrics": {},
    }
    for name in METRICS:
        a = statistics.median(r[name] for r in mine)
        b = statistics.median(r[name] for r in other)
        spread = [round(r[name], 3) for r in other]
        row["metrics"][name] = {
            "autotune": round(a, 3),
            "vllm_bench_serve": round(b, 3),
            "difference": round(a / b - 1, 4) if b else None,
            "rounds_autotune": [round(r[name], 3) for r in mine],
            "rounds_vllm_bench_serve": spread,
        }
    row["within_bound"] = all(abs(row["metrics"][name]["difference"]) <= BOUND for name in BOUNDED)
    print(line_of(row), flush=True)
    return row


def line_of(row: dict[str, Any]) -> str:
    parts = [f"{row['endpoint']:22} c={row['concurrency']:<3}"]
    for name in ("tok_s", "ttft_ms.p50", "tpot_ms.mean", "itl_ms.mean"):
        m = row["metrics"][name]
        parts.append(
            f"{name} {m['autotune']:.2f}/{m['vllm_bench_serve']:.2f} ({m['difference']:+.1%})"
        )
    return "  ".join([*parts, f"cpu {row['client_cpu_share']:.1%}"])


def all_rows(folder: Path, rounds: int) -> list[dict[str, Any]]:
    model = make_qwen3(folder / "qwen3")
    prompts: list[Prompt] = [p for category in CATEGORIES for p in load_prompts(category)]
    prompts = [p for p in prompts if len(p.text) < 400]
    settings = cpu_settings(model, *CACHE_ARGS, "--no-enable-prefix-caching")
    theirs = TheirClient(folder / "bench.log")
    try:
        with start(LocalLauncher(), settings, folder / "server.log", START_S) as server:
            return [
                compare(
                    server,
                    Load(server.url, server.model, prompts, count, lanes, TOKENS, chat=chat),
                    theirs,
                    model,
                    folder,
                    rounds,
                )
                for chat in (True, False)
                for lanes, count in REQUESTS.items()
            ]
    finally:
        theirs.close()


def main() -> None:
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder:
        rows = all_rows(Path(folder), rounds)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "what": "median over the rounds, the two clients in turns on one real vLLM server",
        "model": "Qwen3, 2 layers, random weights (tests/spec/tiny_models.py)",
        "output_tokens": TOKENS,
        "rounds": rounds,
        "bound": BOUND,
        "bounded": BOUNDED,
        "within_bound": all(row["within_bound"] for row in rows),
        "rows": rows,
        "command": "python benchmarks/client.py",
        "commit": commit,
        "environment": environment(),
    }
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n")
    print("within the bound" if result["within_bound"] else "NOT within the bound")


if __name__ == "__main__":
    if sys.argv[1:] == ["--their-client"]:
        serve_their_client()
    else:
        main()
