"""The load client against `vllm bench serve`: the same requests on the same server, in turns.

Usage: python benchmarks/client.py [RESULT.json] [ROUNDS]. Bound: medians within 3 %. With URL and
TOKENIZER besides, the server that runs there is asked instead of ours, for 128 tokens a request.

Both clients take turns on one real server (a small Qwen3, CPU build of vLLM), so that a machine
that is slower for a while is slower for both. The model is large enough for its steps, not the
clients, to take the time: on 2 cores what a client burns is missing to the server, and ours burns
half as much. vLLM's client is its own code with its own command line, kept in one process so that
its 15 s of imports are paid once. Compared are the medians over the rounds. Prefix caching is off:
each request is prefilled anew.

Such a comparison is as good as the machine is quiet. What does not depend on it: the bytes that
vLLM's client receives are stamped with the time as ours would, read by our code as well, and both
results of these same requests compared ("same_bytes").

The control is a scripted server that sends a token every 10 ms: there the true times are known, and
what two clients make of them does not depend on how busy the machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from autotune.machine.environment import environment
from autotune.serving.measure.client import Load, Stream, decode_stream, run_load
from autotune.serving.measure.prompts import CATEGORIES, Prompt, load_prompts
from autotune.serving.measure.timing import LoadResult
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.server import start

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.serving.real_server import CACHE_ARGS, CPU_ENV, START_S, cpu_settings
from tests.serving.sse_server import DONE, chat, serving, usage
from tests.serving.tiny_models import make_tokenizer

BOUND = 0.03
TOKENS = 32
REQUESTS = {1: 6, 4: 16, 8: 24, 32: 64}
PLAIN = 4
"""The concurrency at which ``/v1/completions`` is compared too: only the request differs."""
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


def make_model(folder: Path) -> Path:
    """25 million random weights, 50 MB: several milliseconds a step on one core."""
    import torch  # noqa: PLC0415
    from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=384,
        max_position_embeddings=2048,
        eos_token_id=1,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


async def a_token_every_10_ms(response: web.StreamResponse, _: dict[str, Any]) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    for number in range(TOKENS):
        await asyncio.sleep(began + (number + 5) * 0.01 - clock())
        await response.write(chat("word "))
    await response.write(usage(TOKENS) + DONE)


def serve_script() -> None:
    """In a process of its own: the control, until standard input closes."""
    with serving(a_token_every_10_ms) as server:
        print(server.url, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def scripted() -> Iterator[str]:
    command = [sys.executable, __file__, "--script"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


class Eavesdropper:
    """Sees the bytes that vLLM's client receives, when our client would see them."""

    def __init__(self) -> None:
        self.streams: dict[Any, Stream] = {}
        post, iter_any = aiohttp.ClientSession.post, aiohttp.StreamReader.iter_any

        def stamped_post(session: Any, *args: Any, **more: Any) -> Any:
            self.streams[asyncio.current_task()] = Stream(len(self.streams), time.perf_counter())
            return post(session, *args, **more)

        async def stamped(reader: Any) -> AsyncIterator[bytes]:
            stream, rest = self.streams[asyncio.current_task()], b""
            async for chunk in iter_any(reader):
                now = time.perf_counter()
                *whole, rest = (rest + chunk).split(b"\n\n")
                stream.events.extend((now, event) for event in whole)
                yield chunk

        setattr(aiohttp.ClientSession, "post", stamped_post)  # noqa: B010
        setattr(aiohttp.StreamReader, "iter_any", stamped)  # noqa: B010

    def summary(self, duration_s: float) -> dict[str, float]:
        """Our numbers for what was heard."""
        records = tuple(decode_stream(stream, 0.0) for stream in self.streams.values())
        return flat(LoadResult(records, 0, duration_s, 0.0))


def flat(result: LoadResult) -> dict[str, float]:
    assert not result.errors(), result.errors()
    summary = result.summary().as_json()
    found = {}
    for name in METRICS:
        key, _, part = name.partition(".")
        found[name] = summary[key][part] if part else summary[key]
    return found


def serve_their_client() -> None:
    """In a process of its own: one list of arguments in a line, one result out."""
    from vllm.benchmarks.serve import add_cli_args, main  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    ear = Eavesdropper()
    for line in sys.stdin:
        with contextlib.redirect_stdout(io.StringIO()):
            args = parser.parse_args(json.loads(line))
            ear.streams.clear()
            began = time.process_time()
            result = main(args)
            cpu_s = time.process_time() - began
        wanted = {name: result[name] for name in ("failed", *METRICS.values())}
        wanted["cpu_share"] = cpu_s / result["duration"]  # with the tokenizer and a first request
        heard = ear.summary(result["duration"])
        wanted["same_bytes"] = max(
            abs(heard[mine] - result[theirs]) / max(result[theirs], 0.1)
            for mine, theirs in METRICS.items()
        )
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
                found = {mine: result[theirs] for mine, theirs in METRICS.items()}
                extra = {"client_cpu_share": result["cpu_share"]}
                return found | extra | {"same_bytes": result["same_bytes"]}
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
    return flat(result) | {"client_cpu_share": result.client_cpu_s / result.duration_s}


def compare(
    server: str, load: Load, theirs: TheirClient, tokenizer: Path, folder: Path, rounds: int
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
        "server": server,
        "endpoint": load.endpoint().removeprefix(load.url),
        "concurrency": load.concurrency,
        "requests": load.requests,
        "client_cpu_share": [
            round(statistics.median(r["client_cpu_share"] for r in runs), 4)
            for runs in (mine, other)
        ],
        "same_bytes": max(r["same_bytes"] for r in other),
        "metrics": {},
    }
    for name in METRICS:
        a = statistics.median(r[name] for r in mine)
        b = statistics.median(r[name] for r in other)
        row["metrics"][name] = {
            "autotune": round(a, 3),
            "vllm_bench_serve": round(b, 3),
            "difference": round(a / b - 1, 4) if b else None,
            "rounds_autotune": [round(r[name], 3) for r in mine],
            "rounds_vllm_bench_serve": [round(r[name], 3) for r in other],
        }
    row["within_bound"] = all(abs(row["metrics"][name]["difference"]) <= BOUND for name in BOUNDED)
    print(line_of(row), flush=True)
    return row


def line_of(row: dict[str, Any]) -> str:
    parts = [f"{row['server']:9} {row['endpoint']:20} c={row['concurrency']:<3}"]
    for name in ("tok_s", "ttft_ms.p50", "tpot_ms.mean", "itl_ms.mean"):
        m = row["metrics"][name]
        parts.append(
            f"{name} {m['autotune']:.2f}/{m['vllm_bench_serve']:.2f} ({m['difference']:+.1%})"
        )
    return "  ".join(
        [
            *parts,
            "cpu {:.1%}/{:.1%}".format(*row["client_cpu_share"]),
            f"same bytes {row['same_bytes']:.2%}",
        ]
    )


def all_rows(folder: Path, rounds: int, there: list[str]) -> Iterator[dict[str, Any]]:
    model = Path(there[1]) if there else make_model(folder / "qwen3")
    prompts: list[Prompt] = [p for category in CATEGORIES for p in load_prompts(category)]
    prompts = [p for p in prompts if len(p.text) < 400]
    args = (*CACHE_ARGS, "--no-enable-prefix-caching", "--dtype", "auto")
    settings = cpu_settings(model, *args, env=CPU_ENV)
    theirs = TheirClient(folder / "bench.log")
    tokens = 128 if there else TOKENS

    def table(server: str, url: str, name: str) -> Iterator[dict[str, Any]]:
        cases = [(lanes, True) for lanes in REQUESTS]
        cases += [(PLAIN, False)] if server == "vllm" else []
        for lanes, chat_ in cases:
            requests = REQUESTS[lanes] if server == "vllm" else max(4, 2 * lanes)
            load = Load(url, name, prompts, requests, lanes, tokens, chat=chat_)
            yield compare(server, load, theirs, model, folder, rounds)

    try:
        if there:
            yield from table("vllm", there[0], str(model))
            return
        with scripted() as url:
            yield from table("scripted", url, str(model))
        with start(LocalLauncher(), settings, folder / "server.log", START_S) as server:
            yield from table("vllm", server.url, server.model)
    finally:
        theirs.close()


def document(rows: list[dict[str, Any]], rounds: int, there: list[str]) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "what": "median over the rounds, the two clients in turns on one server",
        "model": there[1] if there else "Qwen3, 6 layers, 512 wide, random weights",
        "output_tokens": 128 if there else TOKENS,
        "rounds": rounds,
        "bound": BOUND,
        "bounded": BOUNDED,
        "same_bytes_largest_difference": max(row["same_bytes"] for row in rows),
        "within_bound": all(row["within_bound"] for row in rows),
        "load_average_at_the_end": os.getloadavg(),
        "rows": rows,
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit,
        "environment": environment(),
    }


def main() -> None:
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    there = sys.argv[3:5]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in all_rows(Path(folder), rounds, there):
            rows.append(row)
            if len(sys.argv) > 1:  # after every row: a run that is cut off keeps what it has
                text = json.dumps(document(rows, rounds, there), indent=2) + "\n"
                Path(sys.argv[1]).write_text(text)
    print(
        "within the bound"
        if document(rows, rounds, there)["within_bound"]
        else "NOT within the bound"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--their-client"]:
        serve_their_client()
    elif sys.argv[1:] == ["--script"]:
        serve_script()
    else:
        main()
