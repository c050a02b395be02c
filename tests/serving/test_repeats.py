"""Repeats as they are stored: nothing that a number needs is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from autotune.core import Candidate, Workload
from autotune.serving.measure.counters import DraftCounters
from autotune.serving.measure.repeats import Journal, Repeat
from autotune.serving.measure.timing import LoadResult, RequestRecord
from autotune.serving.scenario import SpecScenario

LOAD = SpecScenario("t", "d", "p", "k", (1,), 8, True, True, 3, 1, "geomean")
CANDIDATE = Candidate.of({"gamma": 2})


def repeat() -> Repeat:
    record = RequestRecord(0, 0.1, 0.25, (0.5, 0.125), 0.875, 7, 9, "text", "length")
    return Repeat(LoadResult((record,), 2, 1.5, 0.25), 3, DraftCounters(4, 8, 5, (3, 2)))


def test_a_repeat_survives_json_but_for_its_texts() -> None:
    again = Repeat.of_json(json.loads(json.dumps(repeat().as_json())))
    assert again.result.summary() == repeat().result.summary()
    assert (again.preemptions, again.drafts) == (3, repeat().drafts)
    plain = Repeat(repeat().result)
    assert Repeat.of_json(json.loads(json.dumps(plain.as_json()))).drafts is None


class Kept:
    """A database that is a dict."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, Any]] = {}

    def load_parts(self, workload: Workload, candidate: Candidate) -> dict[str, dict[str, Any]]:
        return dict(self.parts) if (workload, candidate) == (LOAD, CANDIDATE) else {}

    def append_part(
        self, workload: Workload, candidate: Candidate, name: str, value: Mapping[str, Any]
    ) -> None:
        assert (workload, candidate) == (LOAD, CANDIDATE)
        self.parts[name] = json.loads(json.dumps(value))


def test_a_journal_gives_back_what_an_earlier_one_was_given() -> None:
    kept = Kept()
    first = Journal(kept, LOAD, CANDIDATE)
    first.add(2, 0, repeat())
    assert first.get(2, 1) is None
    again = Journal(kept, LOAD, CANDIDATE)
    found = again.get(2, 0)
    assert found is not None
    assert found.result.summary() == repeat().result.summary()
    assert (again.reused, first.reused) == (1, 0)
    assert Journal(kept, LOAD, Candidate.of({"gamma": 3})).get(2, 0) is None


def test_without_a_log_nothing_is_kept() -> None:
    journal = Journal()
    journal.add(1, 0, repeat())
    assert journal.get(1, 0) is None


def test_what_is_no_repeat_is_an_error() -> None:
    with pytest.raises(LookupError):
        Repeat.of_json({})
