"""One job for every kind of tuning: study, lock, search record, recorded run, measurer; then steps.

A kind is what stands on the other side: its plan says what the study is about, its measurer turns
candidates into measurements, and its steps are baseline, search, confirmation and selection. What
is done with a stored study of any kind asks its :class:`Kind`, which :func:`get` finds.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from autotune.core import BadInputError, Measurer
from autotune.store.records import SearchRecord, StudyDetail
from autotune.store.run_log import StoredLog, recorded
from autotune.store.store import Store
from autotune.tune import OnProgress

if TYPE_CHECKING:
    from autotune.report.page import Page
    from autotune.store.bundle import Bundle

MOE = "moe"
"""Kernels, in ``autotune/kernels``. The name stands in databases."""
SPEC = "spec"
"""Servers, in ``autotune/serving``. The name stands in databases."""
_MODULES = {MOE: "autotune.kernels.kind", SPEC: "autotune.serving.kind"}
"""Where the :class:`Kind` of each name is, as ``KIND``; loaded when it is asked for."""


@dataclass(frozen=True)
class Overview:
    """The best of a study in brief, for a terminal and as JSON values.

    Attributes:
        heads: of the table's columns; no table if empty.
        rows: a cell a column.
        figures: the cells are numbers, except the first of each row.
        before: a line above the table.
        after: lines below it.
        document: what JSON holds besides the best trials.
    """

    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figures: bool = False
    before: str = ""
    after: tuple[str, ...] = ()
    document: dict[str, Any] = field(default_factory=dict)


class Kind(Protocol):
    """A kind tells commands that work on any stored study what only it knows."""

    def page(
        self,
        store: Store,
        study: str,
        *,
        out: Path | None = None,
        min_gain: str | None = None,
        device: str | None = None,
    ) -> Page:
        """Make the page of a study as of now.

        Args:
            store: with the study.
            study: its name.
            out: where commands write their files, for what an older job left there alone; nothing
                is read from there if None.
            min_gain: ``1%`` or ``0.01``, a gain that counts; as the finished job had it if None.
            device: tuned for, where it is none of those that come with the project.

        Raises:
            BadInputError: no such study, or nothing to show in it yet.
        """

    def folder(self, out: Path, page: Page, study: str) -> Path:
        """Return where the files of a study's page belong."""

    def overview(self, store: Store, detail: StudyDetail, best: list[dict[str, Any]]) -> Overview:
        """Sum up a study for ``autotune show``.

        Args:
            store: with the study.
            detail: of the study.
            best: the best trial of each workload (``store/best.py``).
        """

    def check_bundle(self, bundle: Bundle) -> None:
        """Check what a bundle of anybody says, beyond its form.

        Raises:
            BadInputError: it contradicts itself.
        """


def get(name: str) -> Kind:
    """Return the kind of a name that stands in a database or a bundle.

    Raises:
        BadInputError: there is no such kind.
    """
    if name not in _MODULES:
        raise BadInputError(f"kind {name!r}: not one of {', '.join(_MODULES)}")
    return cast("Kind", importlib.import_module(_MODULES[name]).KIND)


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
