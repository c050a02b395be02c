"""Repeats as they are stored: nothing that a number needs is lost."""

from __future__ import annotations

import json

import pytest

from autotune.core import Candidate, Job
from autotune.serving.measure.counters import DraftCounters
from autotune.serving.measure.repeats import Repeat, kept, part
from autotune.serving.measure.timing import LoadResult, RequestRecord
from autotune.serving.scenario import SpecScenario

LOAD = SpecScenario("t", "d", "p", "k", (1,), 8, True, True, 3, 1, "geomean")
CANDIDATE = Candidate.of({"gamma": 2})


def repeat() -> Repeat:
    record = RequestRecord(0.1, 0.25, (0.5, 0.125), 0.875, 7, 9, "text", "length")
    drafts = DraftCounters(4, 8, 5, (3, 2))
    return Repeat(LoadResult((record,), 2, 1.5, 0.25), 3, drafts, ({"sm_mhz": 2400.0},))


def test_a_repeat_survives_json_but_for_its_texts() -> None:
    again = Repeat.of_json(json.loads(json.dumps(repeat().as_json())))
    assert again.result.summary() == repeat().result.summary()
    assert (again.preemptions, again.drafts) == (3, repeat().drafts)
    assert again.clocks == repeat().clocks
    assert len(Repeat.together([again, again]).clocks) == 2
    older = {name: value for name, value in repeat().as_json().items() if name != "clocks"}
    assert Repeat.of_json(older).clocks == ()
    plain = Repeat(repeat().result)
    assert Repeat.of_json(json.loads(json.dumps(plain.as_json()))).drafts is None


def test_a_part_that_was_stored_need_not_be_measured_again() -> None:
    made = part(Job(CANDIDATE, LOAD), 2, 0, repeat())
    assert (made.candidate, made.workload) == (CANDIDATE, LOAD)
    job = Job(CANDIDATE, LOAD, parts={made.name: json.loads(json.dumps(made.value))})
    found = kept(job, 2, 0)
    assert found is not None
    assert found.result.summary() == repeat().result.summary()
    assert kept(job, 2, 1) is None
    assert kept(job, 1, 0) is None


def test_what_is_no_repeat_is_an_error() -> None:
    with pytest.raises(LookupError):
        Repeat.of_json({})
