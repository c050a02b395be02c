"""The load client: against a scripted server, against vLLM's own arithmetic, against real vLLM."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from autotune.serving.measure.client import Load, run_load, run_load_async
from autotune.serving.measure.metrics import parse_metrics, server_metrics, watch_peak
from autotune.serving.measure.prompts import Prompt, load_prompts
from autotune.serving.measure.timing import LoadResult, RequestRecord, Spread
from autotune.serving.running.server import look
from autotune.serving.server.launchers import UrlLauncher
from autotune.serving.server.server import Server
from autotune.serving.server.web import fetch
from tests.serving.sse_server import (
    DONE,
    METRICS,
    SseServer,
    chat,
    event,
    serving,
    three_tokens,
    usage,
)
from tests.support.installed_vllm import InstalledVllm

TWO = (Prompt.of("one"), Prompt.of("two"))


def load_on(server: SseServer | Server, **changes: Any) -> Load:
    model = getattr(server, "model", "m")
    return replace(Load(server.url, model, TWO, 4, 2, 3, timeout_s=30.0), **changes)


EARLY = 0.01
"""Seconds by which a sleep may seem shorter between two clocks."""
SOON_S = 5.0


def test_times_and_tokens_of_a_request() -> None:
    with serving(three_tokens) as server:
        result = run_load(load_on(server, requests=1))
    (record,) = result.records
    assert (record.text, record.finish, record.error) == ("aéc", "length", "")
    assert (record.prompt_tokens, record.output_tokens) == (5, 4)
    # A busy machine makes pauses longer, never shorter.
    assert record.ttft_s >= 0.1 - EARLY
    assert len(record.itl_s) == 3
    assert min(record.itl_s[1:]) >= 0.05 - EARLY
    assert result.duration_s - record.latency_s >= 0.1 - EARLY  # after the last token
    assert record.latency_s == pytest.approx(record.ttft_s + sum(record.itl_s))
    assert record.tpot_s == pytest.approx((record.latency_s - record.ttft_s) / 3)
    assert record.tok_s == pytest.approx(4 / record.latency_s)
    assert result.duration_s >= 0.3 - EARLY
    assert result.client_cpu_s < result.duration_s


def test_what_is_sent() -> None:
    with serving(three_tokens) as server:
        run_load(load_on(server, requests=3, concurrency=1))
        run_load(
            load_on(
                server,
                requests=2,
                concurrency=1,
                chat=False,
                ignore_eos=False,
                cache_salt="boot-3",
                extra={"seed": 7},
            )
        )
    assert server.paths == ["/v1/chat/completions"] * 3 + ["/v1/completions"] * 2
    common = {
        "model": "m",
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    as_chat = {"max_completion_tokens": 3, "ignore_eos": True}
    texts = ["one", "two", "one"]
    assert server.bodies[:3] == [
        common | as_chat | {"messages": [{"role": "user", "content": text}]} for text in texts
    ]
    assert server.bodies[3:] == [
        common | {"max_tokens": 3, "prompt": text, "seed": 7, "cache_salt": f"boot-3-{index}"}
        for index, text in enumerate(texts[:2])
    ]


@pytest.mark.parametrize("concurrency", [1, 4, 8])
def test_the_loop_is_closed(concurrency: int) -> None:
    """So many in flight, never more: as one is answered, the next is sent."""
    with serving(three_tokens) as server:
        result = run_load(load_on(server, requests=2 * concurrency, concurrency=concurrency))
    assert server.most_flying == concurrency
    assert (len(result.records), result.errors()) == (2 * concurrency, [])
    late = sorted(record.start_s for record in result.records)[concurrency:]
    assert min(late) >= 0.29
    assert result.duration_s < 2 * 0.3 + SOON_S


def test_more_lanes_than_requests_do_no_harm() -> None:
    with serving(three_tokens) as server:
        assert len(run_load(load_on(server, requests=2, concurrency=9)).records) == 2


FAULTS: dict[str, tuple[list[bytes], str]] = {
    "broken off": ([chat("a")], "the stream broke off"),
    "no token": ([usage(0), DONE], "the stream broke off"),
    "no usage": ([chat("a"), DONE], "the server does not count its tokens (no usage)"),
    "not json": ([chat("a"), b"data: {no}\n\n", DONE], "not OpenAI's format: "),
    "odd": ([event(["a"]), DONE], "not OpenAI's format: "),
    "error": (
        [chat("a"), event({"error": {"message": "EngineCore died"}}), DONE],
        'in the stream: {"message": "EngineCore died"}',
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_answer_is_a_failed_request(name: str) -> None:
    pieces, message = FAULTS[name]

    async def script(response: web.StreamResponse, body: dict[str, Any]) -> None:
        if body["messages"][0]["content"] == "two":
            await three_tokens(response, body)
            return
        for piece in pieces:
            await response.write(piece)

    with serving(script) as server:
        result = run_load(load_on(server, requests=2))
    bad, good = result.records
    assert bad.error.startswith(message)
    assert (good.error, good.output_tokens) == ("", 4)
    summary = result.summary()
    assert (summary.completed, summary.failed, summary.output_tokens) == (1, 1, 4)
    assert result.errors() == [bad.error]


def test_a_late_answer_is_a_failed_request() -> None:
    async def never(response: web.StreamResponse, _: dict[str, Any]) -> None:
        await response.write(chat("a"))
        await asyncio.sleep(10 * SOON_S)

    with serving(never) as server:
        result = run_load(load_on(server, requests=1, timeout_s=0.3))
    assert result.errors() == ["no full answer within 0.3 s"]
    assert result.duration_s < SOON_S


@pytest.mark.parametrize("lanes", [1, 2])
def test_nothing_is_sent_any_more_once_a_request_has_failed(lanes: int) -> None:
    async def stalled(_: web.StreamResponse, __: dict[str, Any]) -> None:
        await asyncio.sleep(10 * SOON_S)

    with serving(stalled) as server:
        result = run_load(load_on(server, requests=20, concurrency=lanes, timeout_s=0.5))
    assert len(result.records) == len(server.bodies) == lanes
    assert all(record.error for record in result.records)
    assert result.duration_s < SOON_S


def test_nobody_there_is_a_failed_request() -> None:
    with serving(three_tokens) as server:
        pass
    (error,) = run_load(load_on(server)).errors()
    assert error.startswith("ClientConnectorError: ")
    assert server_metrics(server.url) is None


def test_pieces_of_an_event_are_put_together() -> None:
    whole = chat("né") + usage(2) + DONE

    async def script(response: web.StreamResponse, _: dict[str, Any]) -> None:
        for index in range(len(whole)):  # cuts through the two bytes of «é» and the blank lines
            await response.write(whole[index : index + 1])
            await asyncio.sleep(0.001)

    with serving(script) as server:
        (record,) = run_load(load_on(server, requests=1)).records
    assert (record.text, record.output_tokens, record.error) == ("né", 2, "")


def test_thoughts_are_generated_text() -> None:
    async def script(response: web.StreamResponse, _: dict[str, Any]) -> None:
        await response.write(event({"choices": [{"delta": {"reasoning": "hm, "}}]}))
        await response.write(chat("yes") + usage(2) + DONE)

    with serving(script) as server:
        (record,) = run_load(load_on(server, requests=1)).records
    assert (record.text, len(record.itl_s)) == ("hm, yes", 1)


def test_a_load_of_nothing_is_refused() -> None:
    for counts in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="at least one"):
            Load("http://x", "m", TWO, *counts)
    with pytest.raises(ValueError, match="prompts"):
        Load("http://x", "m", (), 1, 1, 1)


# ------------------------------------------------------------------------------------------
# arithmetic

RECORDS = (
    RequestRecord(0.0, 0.1, (0.0, 0.05, 0.07), 0.22, 10, 4),
    RequestRecord(0.1, 0.3, (0.02,) * 9, 0.48, 20, 30),
    RequestRecord(0.2, 0.2, (), 0.2, 7, 1),
    RequestRecord(0.3, error="HTTP 500"),
    RequestRecord(0.4, 0.15, (0.5, 0.01), 0.66, 3, 3),
)
RESULT = LoadResult(RECORDS, 2, 1.25, 0.01)


def test_the_summary_by_hand() -> None:
    summary = RESULT.summary()
    assert (summary.completed, summary.failed) == (4, 1)
    assert (summary.prompt_tokens, summary.output_tokens) == (40, 38)
    assert summary.tok_s == pytest.approx(38 / 1.25)
    rates = [4 / 0.22, 30 / 0.48, 1 / 0.2, 3 / 0.66]
    assert summary.request_tok_s is not None
    assert summary.request_tok_s.mean == pytest.approx(statistics.fmean(rates))
    assert summary.request_tok_s.std == pytest.approx(statistics.pstdev(rates))
    assert summary.tpot_ms is not None
    assert summary.tpot_ms.p50 == pytest.approx(40.0)  # of 40, 180/29 and 255
    assert json.loads(json.dumps(summary.as_json()))["ttft_ms"]["p50"] == pytest.approx(175.0)
    assert Spread.of([]) is None
    assert LoadResult((RECORDS[3],), 1, 0.0, 0.0).summary().tok_s == 0.0


@pytest.mark.server
def test_the_summary_is_that_of_vllm_bench_serve(installed_vllm: InstalledVllm) -> None:
    installed_vllm.run(f"import {__name__} as test; test.compare_with_bench_serve()")


def compare_with_bench_serve() -> None:
    """Compare the figures of a load, in a process that has imported vLLM."""
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
    from vllm.benchmarks.serve import calculate_metrics

    outputs = [
        RequestFuncOutput(
            success=not record.error,
            latency=record.latency_s,
            output_tokens=record.output_tokens,
            ttft=record.ttft_s,
            itl=list(record.itl_s),
            prompt_len=record.prompt_tokens,
            start_time=record.start_s,
        )
        for record in RECORDS
    ]
    theirs, _ = calculate_metrics([], outputs, RESULT.duration_s, None, [50.0, 99.0], {})
    ours = RESULT.summary()
    assert ours.tok_s == pytest.approx(theirs.output_throughput)
    assert (ours.completed, ours.failed) == (theirs.completed, theirs.failed)
    assert (ours.prompt_tokens, ours.output_tokens) == (theirs.total_input, theirs.total_output)
    for name, mine in (("ttft", ours.ttft_ms), ("tpot", ours.tpot_ms), ("itl", ours.itl_ms)):
        assert mine is not None
        assert mine.mean == pytest.approx(getattr(theirs, f"mean_{name}_ms"))
        assert mine.std == pytest.approx(getattr(theirs, f"std_{name}_ms"))
        percentiles = dict(getattr(theirs, f"percentiles_{name}_ms"))
        assert (mine.p50, mine.p99) == pytest.approx((percentiles[50.0], percentiles[99.0]))


def test_counters_are_read_and_subtracted() -> None:
    now = parse_metrics(METRICS)
    assert now.drafts is not None
    assert (now.drafts.drafts, now.drafts.draft_tokens, now.drafts.accepted_tokens) == (15, 30, 13)
    assert now.drafts.accepted_by_position == (9, 4)
    assert (now.preemptions, now.running) == (2, 0)
    assert (now.kv_cache_tokens, now.cache["cache_dtype"]) == (524288, "fp8")
    zero = now.since(now)
    assert zero.drafts is not None
    assert (zero.drafts.drafts, zero.drafts.accepted_by_position) == (0, (0, 0))
    assert (zero.preemptions, zero.running) == (0, 0)
    plain = parse_metrics("vllm:num_preemptions_total 1.0\n")
    assert (plain.drafts, plain.kv_cache_tokens, plain.preemptions) == (None, None, 1)


def test_a_text_that_is_not_metrics_is_none() -> None:
    with serving(three_tokens) as server:
        for text in ("<html>", 'vllm:x{a="', METRICS.replace(" 13.0", " 99.0")):
            server.metrics = text
            assert server_metrics(server.url) is None
        server.metrics = METRICS
        assert server_metrics(server.url) == parse_metrics(METRICS)


def test_the_peak_is_seen_while_a_load_runs() -> None:
    async def watched(server: SseServer) -> tuple[float | None, int | None]:
        server.metrics = METRICS
        async with watch_peak(server.url, 0.02) as peak:
            await run_load_async(load_on(server, requests=1))
            server.metrics = METRICS.replace("0.75", "0.1")
            await asyncio.sleep(0.1)
        assert peak.readings > 3
        return peak.kv_cache_usage, peak.waiting

    with serving(three_tokens) as server:
        assert asyncio.run(watched(server)) == (0.75, 3)


# ------------------------------------------------------------------------------------------
# the real server


def counted_tokens(server: Server) -> dict[str, int]:
    """What the server itself has counted, whatever of it we read."""
    reply = fetch(f"{server.url}/metrics", 10.0)
    assert reply is not None
    found = re.findall(r"^vllm:(prompt|generation)_tokens_total\{.*\} (\S+)$", reply.text, re.M)
    return {name: int(float(value)) for name, value in found}


@pytest.mark.server
@pytest.mark.parametrize("as_chat", [True, False])
def test_the_real_server_is_loaded(as_chat: bool, real_server: Server) -> None:
    load = load_on(
        real_server,
        prompts=load_prompts("chat"),
        requests=8,
        concurrency=4,
        max_tokens=24,
        chat=as_chat,
    )
    before, tokens = server_metrics(real_server.url), counted_tokens(real_server)
    result = run_load(load)
    after, later = server_metrics(real_server.url), counted_tokens(real_server)
    assert before is not None
    assert after is not None
    assert result.errors() == []
    assert [record.output_tokens for record in result.records] == [24] * 8
    assert later["generation"] - tokens["generation"] == 8 * 24
    assert later["prompt"] - tokens["prompt"] == result.summary().prompt_tokens
    counted = after.since(before)
    assert counted.preemptions == 0
    assert counted.drafts is not None
    assert counted.drafts.draft_tokens == 2 * counted.drafts.drafts > 0
    assert 0 < counted.drafts.accepted_tokens <= counted.drafts.draft_tokens
    # Each step of a request yields one token and what was accepted.
    assert counted.drafts.drafts + counted.drafts.accepted_tokens <= 8 * 24
    assert after.kv_cache_tokens is not None
    assert after.kv_cache_tokens > 1024
    assert all(len(record.itl_s) + 1 <= 24 + as_chat for record in result.records)
    assert real_server.context == 1024


@pytest.mark.server
def test_greedy_answers_repeat(real_server: Server) -> None:
    load = load_on(real_server, prompts=load_prompts("code")[:3], requests=3, max_tokens=16)
    first, again, salted = (
        run_load(each) for each in (load, load, replace(load, cache_salt="other"))
    )
    texts = [[record.text for record in result.records] for result in (first, again, salted)]
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) == 3


@pytest.mark.server
@pytest.mark.parametrize(
    ("changes", "status"), [({"model": "nobody"}, 404), ({"max_tokens": 5000}, 400)]
)
def test_a_refusal_is_a_failed_request(
    changes: dict[str, Any], status: int, real_server: Server
) -> None:
    (error,) = run_load(load_on(real_server, requests=1, **changes)).errors()
    assert error.startswith(f"HTTP {status}: ")
    assert real_server.failure() is None


@pytest.mark.server
def test_the_real_server_says_what_it_is(real_server: Server) -> None:
    found = look(UrlLauncher(f"{real_server.url}/v1"), load_prompts("chat"), real_server.model)
    assert (found.model, found.context, found.gamma, found.chat) == (
        real_server.model,
        1024,
        2,
        True,
    )
    assert found.version is not None
    assert 0 < time.time() - (found.started or 0.0) < 3600
    assert int(found.cache["kv_cache_size_tokens"]) > 1024
