"""What a vLLM server says of itself at ``/metrics``.

Source: vLLM 0.32 ``vllm/v1/metrics/loggers.py`` and ``vllm/v1/spec_decode/metrics.py``. Values of
several engines (data parallelism) are added up, except shares, of which the largest is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from prometheus_client.parser import text_string_to_metric_families

from autotune.serving.measure.counters import DraftCounters
from autotune.serving.server.web import fetch, fetch_async
from autotune.util.edge import MOST

_LINE_CHARS = 8192
"""The parser takes time with the square of a line; vLLM's longest, its configuration, has 2,000."""
_SPEC = "vllm:spec_decode_num_"
_PREEMPTIONS = "vllm:num_preemptions_total"
_TIMEOUT_S = 10.0
_KV_TOKENS = "kv_cache_size_tokens"


@dataclass(frozen=True)
class ServerMetrics:
    """A reading of the server's counters, or with :meth:`since` what they counted in between.

    Attributes:
        drafts: counters of speculative decoding; None for a server without it.
        preemptions: requests that had to give up their KV cache and begin again.
        running: requests being worked on at the moment.
        cache: the labels of ``vllm:cache_config_info``, such as ``kv_cache_size_tokens``.
    """

    drafts: DraftCounters | None
    preemptions: int
    running: int
    cache: Mapping[str, str] = field(default_factory=dict)

    @property
    def kv_cache_tokens(self) -> int | None:
        """Capacity of the KV cache in tokens; None if the server does not say."""
        text = self.cache.get(_KV_TOKENS, "")
        return int(text) if text.isdecimal() else None

    def since(self, earlier: ServerMetrics) -> ServerMetrics:
        """What was counted since an ``earlier`` reading; what is of the moment stays as it is."""
        drafts = self.drafts
        if drafts is not None and earlier.drafts is not None:
            drafts -= earlier.drafts
        return replace(self, drafts=drafts, preemptions=self.preemptions - earlier.preemptions)


def _ours(text: str) -> str:
    """The lines about vLLM, of a length that the parser reads in no time.

    Raises:
        ValueError: a longer one.
    """
    lines = [line for line in text.split("\n") if "vllm:" in line[:80]]
    if any(len(line) > _LINE_CHARS for line in lines):
        raise ValueError("a line of metrics is too long")
    return "".join(f"{line}\n" for line in lines)


def parse_metrics(text: str) -> ServerMetrics:
    """Read the text of ``/metrics``.

    Raises:
        ValueError: the text is not in Prometheus's format, or its counters cannot belong together.
    """
    sums: dict[str, float] = {}
    positions: dict[int, float] = {}
    cache: dict[str, str] = {}
    for family in text_string_to_metric_families(_ours(text)):
        if not family.name.startswith("vllm:"):
            continue
        for sample in family.samples:
            if not 0 <= sample.value < MOST:  # NaN is not, either
                raise ValueError(f"{sample.name}: no count and no share")
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
            if sample.name == f"{_SPEC}accepted_tokens_per_pos_total":
                position = int(sample.labels["position"])
                positions[position] = positions.get(position, 0.0) + sample.value
            elif sample.name == "vllm:cache_config_info":
                cache = _joined(cache, sample.labels)

    def total(name: str) -> int:
        return int(sums.get(name, 0.0))

    drafts = None
    if f"{_SPEC}drafts_total" in sums:
        drafts = DraftCounters(
            total(f"{_SPEC}drafts_total"),
            total(f"{_SPEC}draft_tokens_total"),
            total(f"{_SPEC}accepted_tokens_total"),
            tuple(int(positions[position]) for position in sorted(positions)),
        )
    return ServerMetrics(drafts, total(_PREEMPTIONS), total("vllm:num_requests_running"), cache)


def _joined(cache: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of one more engine; its KV cache is added to that of the others."""
    both = [one.get(_KV_TOKENS, "") for one in (cache, labels)]
    if all(text.isdecimal() for text in both):
        return {**labels, _KV_TOKENS: str(sum(map(int, both)))}
    return {**labels, **({_KV_TOKENS: both[0]} if both[0] else {})}


def server_metrics(url: str, headers: Mapping[str, str] | None = None) -> ServerMetrics | None:
    """Read the counters of the server at ``url``; None if it does not answer or has none.

    Read while no request runs: vLLM updates its counters one after the other. A server with
    ``--disable-log-stats`` answers without them, which must not read as if all were 0.
    """
    reply = fetch(f"{url}/metrics", _TIMEOUT_S, headers)
    if reply is None or reply.status != 200 or _PREEMPTIONS not in reply.text:
        return None
    try:
        return parse_metrics(reply.text)
    except (ValueError, LookupError):
        return None


@dataclass
class Peak:
    """The most that was seen of what changes all the time; None where it was not shown.

    Attributes:
        kv_cache_usage: largest share of the KV cache in use, 0 to 1.
        waiting: most requests waiting at once.
        readings: how often was looked.
    """

    kv_cache_usage: float | None = None
    waiting: int | None = None
    readings: int = 0

    def add(self, text: str) -> None:
        """Take in a text of ``/metrics``, without parsing all of it."""
        self.readings += 1
        usage = _values(text, "vllm:kv_cache_usage_perc{")
        waiting = _values(text, "vllm:num_requests_waiting{")
        if usage:
            self.kv_cache_usage = max(self.kv_cache_usage or 0.0, *usage)
        if waiting:
            self.waiting = max(self.waiting or 0, int(sum(waiting)))


def _values(text: str, name: str) -> list[float]:
    """Of one gauge, for every engine."""
    lines = (line for line in text.splitlines() if line.startswith(name))
    values = []
    for line in lines:
        with suppress(ValueError):
            value = float(line[-_LINE_CHARS:].rpartition(" ")[2])
            if 0 <= value < MOST:  # a server that counts to infinity says nothing
                values.append(value)
    return values


@asynccontextmanager
async def watch_peak(url: str, every_s: float) -> AsyncIterator[Peak]:
    """Look at the server's gauges every so many seconds while the block runs."""
    peak = Peak()

    async def watch() -> None:
        while True:
            reply = await fetch_async(f"{url}/metrics", 5.0)
            if reply is not None and reply.status == 200:
                peak.add(reply.text)
            await asyncio.sleep(every_s)

    task = asyncio.create_task(watch())
    try:
        yield peak
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
