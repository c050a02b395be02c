"""The gate on outputs: what it takes for rounding, and what for a broken server."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.core import Candidate
from autotune.serving.gate.judge import ALLOWED, FAR, judge, parting
from autotune.serving.gate.text import CLOSE, Text, scored
from autotune.serving.gate.texts import texts_details
from autotune.serving.measure.client import Load
from autotune.serving.measure.prompts import Prompt
from autotune.serving.measure.timing import LoadResult, RequestRecord
from autotune.serving.measure.wire import Wire
from autotune.serving.report.document import document
from autotune.serving.server.web import Reply
from autotune.store.sharing import make_bundle
from autotune.store.store import Store
from tests.serving.test_spec_job import Bench
from tests.serving.tiny_models import TinyModels

VOCABULARY = 50


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path) -> Bench:
    return Bench(tiny_models.qwen3, tmp_path)


def scores(context: Sequence[int]) -> list[float]:
    """What a made-up target thinks of each token: exponential gaps, so that ties are common."""
    chance = random.Random(hash(tuple(context)))
    found = [0.0]
    for _ in range(VOCABULARY - 1):
        found.append(found[-1] - chance.expovariate(0.8))
    chance.shuffle(found)
    return found


def write(
    length: int, prompt: int, seed: int, *, noise: float = 0.0, broken: float = 0.0, after: int = 0
) -> Text:
    """Greedy but for ``noise`` nats of rounding; a share ``broken`` is any of the ten best."""
    chance, context = random.Random(seed), [prompt]
    places: list[Mapping[str, Any]] = []
    for at in range(length):
        values = scores(context)
        if at >= after and chance.random() < broken:
            token = chance.choice(sorted(range(VOCABULARY), key=lambda t: -values[t])[:10])
        else:
            token = max(range(VOCABULARY), key=lambda t: values[t] + chance.uniform(0, noise))
        best = sorted(range(VOCABULARY), key=lambda t: -values[t])[:5]
        places.append({str(t): {"logprob": values[t], "rank": 1} for t in {token, *best}})
        context.append(token)
    return scored(context[1:], places)


def texts(seed: int, count: int = 4, length: int = 60, **how: float) -> list[Text]:
    return [write(length, prompt, seed + prompt, **how) for prompt in range(count)]  # type: ignore[arg-type]


RIGHT, SHORT = texts(0), texts(0, 2, 40)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0, FAR))
def test_rounding_passes_whatever_the_text_becomes(seed: int, noise: float) -> None:
    judged = judge(texts(seed, 2, 40, noise=noise), SHORT)
    assert judged.passes
    assert judged.far == 0
    assert judged.equal + judged.near == judged.texts


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_a_path_that_breaks_after_the_tenth_token_is_seen(seed: int) -> None:
    judged = judge(texts(seed, broken=0.3, after=10), RIGHT)
    assert not judged.passes
    assert judged.parted is not None
    assert judged.parted >= 10
    assert "no near tie" in judged.said


def test_texts_part_where_they_differ_and_not_where_one_ends() -> None:
    long, short = Text((1, 2, 3), {}, {}), Text((1, 2), {}, {})
    assert parting(long, short) is None
    assert parting(long, Text((1, 4, 3), {}, {})) == 1


def test_what_is_no_tie_to_the_reference_counts_whatever_the_server_says() -> None:
    """A server whose prefill is as wrong as its decoding scores itself well."""
    reference = [Text((1, 2, 3), {}, {1: {9: FAR + 0.1}})] * (ALLOWED + 1)
    judged = judge([Text((1, 9, 3), {}, {})] * (ALLOWED + 1), reference)
    assert judged.far == ALLOWED + 1
    assert not judged.passes
    near = [Text((1, 2, 3), {}, {1: {9: FAR - 0.1}})] * (ALLOWED + 1)
    assert judge([Text((1, 9, 3), {}, {})] * (ALLOWED + 1), near).near == ALLOWED + 1


def test_a_target_that_is_far_from_its_own_scores_makes_the_gate_wider() -> None:
    """Such as one whose keys and values are stored in 8 bits, which a prefill does not read."""
    noisy = [Text(tuple(range(100)), dict.fromkeys(range(0, 100, 10), 0.9), {})]
    assert judge(noisy, noisy).passes
    assert judge(noisy, noisy).limit > ALLOWED
    assert not judge(noisy, [Text(tuple(range(100)), {}, {})]).passes


@given(st.lists(st.floats(0, 5, allow_nan=False), min_size=2, max_size=9), st.data())
def test_a_token_s_place_is_read_from_what_vllm_sends(
    values: list[float], data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, len(values) - 1))
    place = {str(i): {"logprob": -v} for i, v in enumerate(values)}
    text = scored([token], [place])
    behind = values[token] - min(values)
    assert text.behind.get(0, 0.0) == pytest.approx(behind, abs=2e-3)
    rivals = text.rivals.get(0, {})
    assert all(nats < CLOSE and name != token for name, nats in rivals.items())
    assert Text.of_json(json.loads(json.dumps(text.as_json()))) == text


@pytest.mark.parametrize(
    "place", [{}, {"1": {}}, {"x": {"logprob": 1.0}}, {"2": {"logprob": -1.0}}]
)
def test_scores_that_are_none_are_refused(place: dict[str, Any]) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        scored([1], [place])


SERVING: dict[str, Any] = {"base_ms": 5.0, "draft_ms": 1.0, "reached": [0.8, 0.6, 0.05, 0.0]}


@pytest.mark.parametrize("dial", [False, True])
def test_output_that_differs_after_ten_tokens_is_not_recommended(
    bench: Bench,
    dial: bool,
) -> None:
    result = bench.tune(SERVING | {"corrupt": {"2": 12}}, gamma="0,1,2", check_tokens=60, dial=dial)
    two = result.compared[Candidate.of({"gamma": 2})]
    assert two.identical == 1.0  # which is all that ten tokens tell
    assert two.judged is not None
    assert two.judged.parted == 12
    assert result.selection.winner.candidate.int("gamma") == 1
    told = document(result)
    assert any("output differs" in text for text in told["warnings"])
    (row,) = (row for row in told["trials"] if row["candidate"]["gamma"] == 2)
    assert row["outputs"]["passes"] is False
    assert row["outputs"]["limit"] == ALLOWED


def test_output_that_parts_at_a_near_tie_is_recommended(bench: Bench) -> None:
    result = bench.tune(SERVING | {"ties": {"2": 12}}, gamma="0,1,2", check_tokens=60)
    judged = result.compared[Candidate.of({"gamma": 2})].judged
    assert judged is not None
    assert judged.near == judged.texts
    assert result.selection.winner.candidate.int("gamma") == 2


def test_where_a_server_scores_nothing_ten_tokens_decide_and_it_is_said(bench: Bench) -> None:
    result = bench.tune(SERVING | {"unscored": True}, gamma="0,1,2", check_tokens=60)
    assert result.selection.winner.candidate.int("gamma") == 2
    said = document(result)["warnings"]
    assert any("HTTP 400: no prompt_logprobs here" in text for text in said)


def test_a_fresh_boot_that_differs_is_out(bench: Bench) -> None:
    """The dialled server was right; the one that would be served is not."""
    result = bench.tune(
        SERVING | {"corrupt_boot": {"2": 12}}, gamma="0,2", check_tokens=60, dial=True
    )
    assert result.selection.kept_incumbent
    assert "output differs" in document(result)["verdict"]


def test_a_study_keeps_its_texts_and_gives_none_away(bench: Bench) -> None:
    bench.tune(SERVING, gamma="0,2", check_tokens=60)
    boots = bench.boots
    again = bench.tune(SERVING, gamma="0,2", check_tokens=60)
    with Store.open(f"sqlite:///{bench.root}/a.db") as store:
        given_away = make_bundle(store, again.plan.study, lambda value: value)
    assert all("texts" not in t.details for t in given_away.searches[0].trials)
    assert "OUTPUT DIFFERS" not in bench.report(again)
    assert "no near tie" in bench.report(again)
    assert bench.boots == boots
    assert again.compared[Candidate.of({"gamma": 2})].judged is not None


class Short(Wire):
    """Answers texts of up to ``most`` tokens, and scores them unless ``mute``."""

    def __init__(self, most: int, *, mute: bool = False) -> None:
        self.most, self.mute, self.asked = most, mute, list[int]()

    def load(self, load: Load) -> LoadResult:
        self.asked.append(load.max_tokens)
        error = "" if load.max_tokens <= self.most else "HTTP 400: too long"
        ids = tuple(range(load.max_tokens))
        records = (RequestRecord(0.0, error=error, tokens=ids, prompt_ids=(7,)) for _ in range(2))
        return LoadResult(tuple(records)[: load.requests], 1, 1.0, 0.0)

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> Reply:
        places = [{str(token): {"logprob": -0.1}} for token in body["prompt"]]
        text = json.dumps({"choices": [{"prompt_logprobs": [None, *places[1:]]}]})
        return Reply(400, "no") if self.mute else Reply(200, text)


LOAD = Load("", "m", [Prompt.of("a"), Prompt.of("b")], requests=1, concurrency=1, max_tokens=8)


def test_a_server_that_scores_nothing_is_not_asked_for_long_texts() -> None:
    wire = Short(100, mute=True)
    assert "HTTP 400: no" in texts_details(wire, LOAD, 60, 1)["no_texts"]
    assert wire.asked == [1]


def test_where_a_long_text_does_not_fit_one_as_long_as_the_load_s_is_judged() -> None:
    wire = Short(8)
    found = texts_details(wire, LOAD, 60, 1)["texts"]
    assert wire.asked == [1, 60, 8]
    assert [len(text["tokens"]) for text in found] == [8, 8]
    assert "too long" in texts_details(Short(1), LOAD, 60, 1)["no_texts"]
    assert texts_details(Short(8), LOAD, 0, 1) == {}
