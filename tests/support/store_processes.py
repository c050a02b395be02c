"""What other processes do to a store while tests look at it, or kill them."""

from __future__ import annotations

import time
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from autotune.store.store import Store
from tests.support.stores import Size, begin, trial, url

BATCH = 7


def write(path: Path, name: str, batches: int, ready: Event) -> None:
    """Store so many batches of a study under its lock."""
    with Store.open(url(path)) as store, store.lock_study(name):
        search, run = begin(store, name)
        workload = store.workload(search, Size(1))
        ready.set()
        for i in range(batches):
            store.add_trials(run, workload.id, [trial(i * BATCH + j) for j in range(BATCH)])


def hold(path: Path, name: str, ready: Event) -> None:
    """Keep the lock of a study."""
    with Store.open(url(path)) as store, store.lock_study(name):
        begin(store, name)
        ready.set()
        time.sleep(600)


def open_together(path: Path, others: Barrier) -> None:
    """Open a database at the moment at which the others do."""
    others.wait(60)
    Store.open(url(path)).close()
