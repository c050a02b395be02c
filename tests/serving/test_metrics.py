"""Counters that are not there are not 0."""

from __future__ import annotations

import pytest

from autotune.serving.measure.metrics import Peak, parse_metrics, server_metrics
from tests.serving.sse_server import METRICS, serving, three_tokens

WITHOUT = "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 7.5\n"
"""What vLLM answers with --disable-log-stats."""


def test_a_server_that_counts_nothing_is_not_read_as_zero() -> None:
    with serving(three_tokens) as server:
        server.metrics = WITHOUT
        assert server_metrics(server.url) is None
        server.metrics = METRICS
        assert server_metrics(server.url) is not None


def test_a_peak_of_what_is_not_shown_is_unknown() -> None:
    peak = Peak()
    peak.add(WITHOUT)
    assert (peak.kv_cache_usage, peak.waiting, peak.readings) == (None, None, 1)
    peak.add(METRICS)
    peak.add(METRICS.replace("0.75", "0.1").replace(" 3.0", " 1.0"))
    assert (peak.kv_cache_usage, peak.waiting, peak.readings) == (0.75, 3, 3)


@pytest.mark.parametrize("first", [186914, None])
def test_the_kv_caches_of_several_engines_are_added_up(first: int | None) -> None:
    sizes = [("0", first), ("1", 187562)]
    text = "# TYPE vllm:cache_config_info gauge\n"
    for engine, size in sizes:
        told = f'kv_cache_size_tokens="{size}",' if size else ""
        text += f'vllm:cache_config_info{{{told}engine="{engine}"}} 1.0\n'
    assert parse_metrics(text).kv_cache_tokens == (first or 0) + 187562
