"""What is sent to a server: warm-up, repeats, salts, the prompts of each repeat."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from autotune.core import Candidate, Job, Outcome
from autotune.serving.measure.cell import measure_whole
from autotune.serving.measure.counters import DraftCounters
from autotune.serving.measure.load import (
    OUTPUT_TOKENS,
    WARMUPS,
    LoadOptions,
    UnservedError,
    acceptance,
)
from autotune.serving.measure.prompts import Prompt
from autotune.serving.measure.wire import Wire
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.launchers import ExistingHandle
from autotune.serving.server.server import Server
from tests.serving.sse_server import DONE, SseServer, chat, serving, usage

PROMPTS = tuple(Prompt.of(text) for text in "abc")


def scenario(**changes: Any) -> SpecScenario:
    given: dict[str, Any] = {"concurrency": (1, 2), "repeats": 2, "waves": 2, "max_tokens": 30}
    given |= changes
    return SpecScenario(
        target="m",
        drafter="d",
        prompts="x",
        prompts_key="k",
        ignore_eos=True,
        chat=True,
        objective="geomean",
        **given,
    )


def measured(server: SseServer, **changes: Any) -> Any:
    known = Server(ExistingHandle(server.url), "m", None, 1.0)
    job = Job(Candidate.of({}), scenario(**changes))
    return measure_whole(Wire(known), job, LoadOptions(PROMPTS, 5.0))


async def answers(response: web.StreamResponse, body: dict[str, Any]) -> None:
    asked = body["messages"][-1]["content"]
    await response.write(chat(f"{asked}!") + usage(body["max_completion_tokens"]) + DONE)


def test_outputs_first_then_every_concurrency_with_prompts_that_go_on() -> None:
    with serving(answers) as server:
        found = measured(server)
    outputs, loads = server.bodies[: len(PROMPTS)], server.bodies[len(PROMPTS) :]
    assert {body["max_completion_tokens"] for body in outputs} == {OUTPUT_TOKENS}
    assert not any("ignore_eos" in body for body in outputs)
    assert len(set(found.details["outputs"])) == len(PROMPTS)
    assert {body["max_completion_tokens"] for body in loads} == {30}
    assert all(body["ignore_eos"] for body in loads)
    salts = [body["cache_salt"] for body in server.bodies]
    assert len(set(salts)) == len(salts)  # nothing is found in the prefix cache
    timed = [body for body in loads if body["cache_salt"].startswith("0-1-")]
    assert [body["messages"][0]["content"] for body in timed] == ["a", "b", "c", "a"]
    assert sum(body["cache_salt"].startswith("0-2-") for body in loads) == 2 * 4
    warm = [salt for salt in salts if salt.startswith("warm-0-1-")]
    assert 2 * 2 <= len(warm) <= 2 * WARMUPS  # as many requests as a timed load has
    assert set(found.details["levels"]) == {"1", "2"}
    assert len(found.samples) == 2


def test_a_server_that_runs_on_finds_no_prompt_of_an_earlier_measurement() -> None:
    with serving(answers) as server:
        measured(server, concurrency=(1,))
        measured(server, concurrency=(1,))
    salts = [body["cache_salt"] for body in server.bodies]
    assert len(set(salts)) == len(salts)


def test_samples_are_of_the_repeats() -> None:
    with serving(answers) as server:
        found = measured(server, concurrency=(1,), repeats=3)
    rates = found.details["levels"]["1"]["repeats"]
    assert found.samples == pytest.approx([1e6 / rate for rate in rates])
    assert found.details["levels"]["1"]["tok_s"] == sorted(rates)[1]


def test_a_request_that_is_refused_is_an_outcome() -> None:
    async def refuses(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await response.write(b"data: nonsense\n\n")

    with serving(refuses) as server, pytest.raises(UnservedError) as caught:
        measured(server)
    assert caught.value.outcome is Outcome.RUNTIME_ERROR
    assert "a request failed: not OpenAI's format" in str(caught.value)


def test_acceptance_counts_steps_without_a_draft_apart() -> None:
    drafts = DraftCounters(10, 20, 12, (8, 4))
    found = acceptance(drafts, generated=32)
    assert found["reached"] == [0.8, 0.4]
    assert found["per_step"] == [0.4, 0.2]  # 20 steps, half of them without a draft
    assert acceptance(None, 5) == {}
    assert acceptance(DraftCounters(0, 0, 0, (0, 0)), 5) == {}
    # The last step may accept more than max_tokens lets through.
    assert acceptance(drafts, generated=15)["per_step"] == [0.8, 0.4]
