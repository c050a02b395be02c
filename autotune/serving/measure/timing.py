"""From the times of single requests to the numbers that users compare.

Every definition is that of ``vllm bench serve`` (vLLM 0.32 ``vllm/benchmarks/serve.py``,
``calculate_metrics``, and ``vllm/benchmarks/lib/endpoint_request_func.py``); only the rate of a
single request has none there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RequestRecord:
    """One request, as the client saw it.

    Attributes:
        start_s: when it was sent, in seconds since the load began.
        ttft_s: seconds to the first chunk that carries a choice. A chat's first chunk names the
            role only; it comes with the first token, and vLLM's client counts it too.
        itl_s: seconds between one such chunk and the next. A chunk holds the tokens of a step, or
            of several where the server's front end lags behind its engine: with speculation these
            are times between steps rather than tokens.
        latency_s: seconds to the last such chunk.
        prompt_tokens: as counted by the server.
        output_tokens: as counted by the server (``usage``), not the number of chunks.
        text: what was generated.
        finish: the server's reason for the end: ``stop`` or ``length``.
        error: why it failed; empty if it did not.
        tokens: ids of the text, where the request asked for them (``return_token_ids``).
        prompt_ids: those of the prompt, likewise.
    """

    start_s: float
    ttft_s: float = 0.0
    itl_s: tuple[float, ...] = ()
    latency_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    finish: str = ""
    error: str = ""
    tokens: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None below two tokens."""
        if self.output_tokens < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.output_tokens - 1)

    @property
    def tok_s(self) -> float:
        """Output tokens per second of this request, the wait for the first one included."""
        return self.output_tokens / self.latency_s if self.latency_s > 0 else 0.0


@dataclass(frozen=True)
class Spread:
    """A sample in four numbers; ``std`` divides by n, percentiles interpolate, as in vLLM."""

    mean: float
    std: float
    p50: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float], factor: float = 1.0) -> Spread | None:
        """The spread of ``factor * values``; None for no values."""
        if not values:
            return None
        array = np.asarray(values, dtype=float) * factor
        p50, p99 = np.percentile(array, [50, 99])
        return cls(float(array.mean()), float(array.std()), float(p50), float(p99))


@dataclass(frozen=True)
class LoadSummary:
    """A load in numbers. Failed requests count in ``failed`` alone.

    Attributes:
        completed: requests answered in full.
        failed: requests that were not.
        duration_s: wall seconds from the first request sent to the last one answered.
        prompt_tokens: of the completed requests.
        output_tokens: of the completed requests.
        tok_s: output tokens of all requests per wall second.
        request_tok_s: output tokens per second of the single requests.
        ttft_ms: time to the first token.
        tpot_ms: time per output token after the first, one value for each request.
        itl_ms: time between chunks, all requests together.
        e2e_ms: time to the last token.
    """

    completed: int
    failed: int
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    tok_s: float
    request_tok_s: Spread | None
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2e_ms: Spread | None

    def as_json(self) -> dict[str, Any]:
        """All numbers, as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LoadResult:
    """All requests of a load.

    Attributes:
        records: in the order of sending.
        concurrency: requests in flight at once.
        duration_s: wall seconds from the first request sent to the last one answered.
        client_cpu_s: processor seconds of this process meanwhile; near ``duration_s``, the client
            rather than the server was measured.
    """

    records: tuple[RequestRecord, ...]
    concurrency: int
    duration_s: float
    client_cpu_s: float

    def errors(self) -> list[str]:
        """What the failed requests say, each text once."""
        return list(dict.fromkeys(record.error for record in self.records if record.error))

    def summary(self) -> LoadSummary:
        """The load in numbers."""
        good = [record for record in self.records if not record.error]
        output = sum(record.output_tokens for record in good)
        tpots = [record.tpot_s for record in good]
        return LoadSummary(
            completed=len(good),
            failed=len(self.records) - len(good),
            duration_s=self.duration_s,
            prompt_tokens=sum(record.prompt_tokens for record in good),
            output_tokens=output,
            tok_s=output / self.duration_s if self.duration_s > 0 else 0.0,
            request_tok_s=Spread.of([record.tok_s for record in good]),
            ttft_ms=Spread.of([record.ttft_s for record in good], 1e3),
            tpot_ms=Spread.of([value for value in tpots if value is not None], 1e3),
            itl_ms=Spread.of([value for record in good for value in record.itl_s], 1e3),
            e2e_ms=Spread.of([record.latency_s for record in good], 1e3),
        )
