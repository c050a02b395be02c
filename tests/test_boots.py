"""Boots in the database: what a machine that hung left without an end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autotune.core import Candidate
from autotune.store.records import LostBoot, RunRecord, RunStatus, SearchRecord
from autotune.store.store import Store
from tests.support.stores import Size, begin, url

A, B = (Candidate.of({"gamma": gamma}) for gamma in (1, 2))
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)

HUNG: list[AbstractContextManager[None]] = []


def next_run(store: Store) -> tuple[SearchRecord, RunRecord]:
    """Another command: what ran before it is marked as killed."""
    with store.lock_study("s"):
        return begin(store)


def boot(
    store: Store, search: SearchRecord, run: RunRecord, candidate: Candidate, m: int = 1
) -> None:
    with store.boots().begun(run, store.workload(search, Size(m)).id, candidate):
        pass


def lost(store: Store, search: SearchRecord) -> list[Candidate]:
    return [boot.candidate for boot in store.boots().lost(search)]


def die_in(
    store: Store, search: SearchRecord, run: RunRecord, candidate: Candidate, m: int = 1
) -> None:
    """Begin a boot and go no further, as a machine that hangs."""
    boot = store.boots().begun(run, store.workload(search, Size(m)).id, candidate)
    boot.__enter__()
    HUNG.append(boot)  # collected as garbage it would end


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    yield url(tmp_path / "a.db")
    HUNG.clear()  # while the database is there


def test_a_boot_is_stored_before_it_starts(path: str) -> None:
    with Store.open(path, now=lambda: NOON) as store, Store.open(path) as other:
        search, run = begin(store)
        with store.boots().begun(run, store.workload(search, Size(1)).id, A):
            assert other.boots().lost(search) == [], "its command lives"
            other.end_run(run, RunStatus.KILLED)
            assert other.boots().lost(search) == [LostBoot(A, NOON)]
        assert other.boots().lost(search) == []


def test_a_boot_that_fails_has_ended(path: str) -> None:
    def fail(search: SearchRecord, run: RunRecord) -> None:
        with store.boots().begun(run, store.workload(search, Size(1)).id, A):
            raise KeyboardInterrupt

    with Store.open(path) as store:
        with pytest.raises(KeyboardInterrupt):
            fail(*begin(store))
        assert lost(store, next_run(store)[0]) == []


def test_the_last_boot_of_a_candidate_counts_and_that_of_others_does_not(path: str) -> None:
    with Store.open(path) as store:
        search, run = begin(store)
        boot(store, search, run, B)
        die_in(store, search, run, A)
        search, run = next_run(store)
        assert lost(store, search) == [A]
        boot(store, search, run, B)
        search, run = next_run(store)
        assert lost(store, search) == [A]
        boot(store, search, run, A)
        search, run = next_run(store)
        assert lost(store, search) == []
        die_in(store, search, run, B)
        assert lost(store, next_run(store)[0]) == [B]


def test_another_search_has_its_own(path: str) -> None:
    with Store.open(path) as store:
        search, run = begin(store)
        die_in(store, search, run, A)
        next_run(store)
        other = store.search(store.study("s", "moe", {"device": "gb10"}), {"seed": 2})
        assert lost(store, other) == []


def test_what_several_servers_did_at_once_none_did_alone(path: str) -> None:
    """Loads of 9 and more are of several here; a boot alone ends no hang of those, nor they its."""
    with Store.open(path, now=lambda: NOON) as store:
        search, run = begin(store)
        for candidate in (A, B):
            die_in(store, search, run, candidate, m=9)
        search, run = next_run(store)
        boot(store, search, run, A)
        die_in(store, search, run, B)
        boot(store, search, run, A, m=10)
        search, _ = next_run(store)
        found = store.boots().lost(search, lambda spec: spec["m"] >= 9)
        assert found == [LostBoot(A, NOON, "m9"), LostBoot(B, NOON, "m9"), LostBoot(B, NOON)]
