"""One job for every kind of tuning: study, lock, search record, recorded run, measurer; then steps.

A kind is what stands on the other side: its plan says what the study is about, its measurer turns
candidates into measurements, and its steps are baseline, search, confirmation and selection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from autotune.core import Measurer
from autotune.store.records import SearchRecord
from autotune.store.run_log import StoredLog, recorded
from autotune.store.store import Store
from autotune.tune import OnProgress

MOE = "moe"
"""Kernels, in ``autotune/kernels``. The name stands in databases."""
SPEC = "spec"
"""Servers, in ``autotune/serving``. The name stands in databases."""


class Plan(Protocol):
    """A plan tells the job what it works on, whatever the kind."""

    @property
    def kind(self) -> str:
        """One of the names above."""

    @property
    def study(self) -> str:
        """The name of the study."""

    @property
    def command(self) -> str:
        """As typed, for the database."""

    def identity(self) -> dict[str, Any]:
        """Return what the study is about, which must not change between two commands."""

    def setup(self) -> dict[str, Any]:
        """Return what trials must share to be compared and resumed."""


PlanT = TypeVar("PlanT", bound=Plan)
MeasurerT = TypeVar("MeasurerT", bound=Measurer)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Run(Generic[PlanT, MeasurerT]):
    """A run holds what the steps of a kind work with.

    Attributes:
        plan: what to do.
        store: what earlier commands left, for reading.
        record: the search in the store.
        log: takes what is learnt.
        measurer: entered.
        on_progress: told after every trial.
        began: on the monotonic clock, in seconds.
    """

    plan: PlanT
    store: Store
    record: SearchRecord
    log: StoredLog
    measurer: MeasurerT
    on_progress: OnProgress
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Wall seconds since the run began."""
        return time.monotonic() - self.began


def tune(
    plan: PlanT,
    store: Store,
    measurer: MeasurerT,
    on_progress: OnProgress,
    steps: Callable[[Run[PlanT, MeasurerT]], ResultT],
) -> ResultT:
    """Run the steps of a kind while nobody else works on the study; how it ended is recorded.

    Args:
        plan: what to do.
        store: takes all that is learnt.
        measurer: of this machine, of another one, or of a test; entered here.
        on_progress: told after every trial.
        steps: from the baseline to the selection.

    Raises:
        BadInputError: another process tunes this study, or it was made for something else.
    """
    began = time.monotonic()
    study = store.study(plan.study, plan.kind, plan.identity())
    with store.lock_study(plan.study):
        record = store.search(study, plan.setup())
        with recorded(store, record, plan.command) as log, measurer:
            return steps(Run(plan, store, record, log, measurer, on_progress, began))
