"""What the commands for any study ask of a serving study; see :class:`autotune.kind.Kind`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.core import BadInputError, Outcome
from autotune.kind import Kind, Overview
from autotune.report.page import Page
from autotune.serving.measure.levels import rate_of
from autotune.serving.report.figures import described, number
from autotune.serving.report.tables import setting
from autotune.serving.stored import Served, folder_of, load_served
from autotune.store.bundle import Bundle
from autotune.store.records import StudyDetail
from autotune.store.store import Store


class ServingKind:
    """A serving study has one page, of the load measured last, and a row for each setting."""

    def page(
        self,
        store: Store,
        study: str,
        *,
        out: Path | None = None,
        min_gain: str | None = None,
        device: str | None = None,
    ) -> Page:
        """Make the page of the load measured last; the two options are a kernel study's."""
        from autotune.serving.report.page import page_of  # noqa: PLC0415 - loads plotly

        del min_gain, device
        return page_of(store, study, out=out)

    def folder(self, out: Path, page: Page, study: str) -> Path:
        """Return the one folder that a serving study has."""
        del page
        return folder_of(out, study)

    def overview(self, store: Store, detail: StudyDetail, best: list[dict[str, Any]]) -> Overview:
        """List every setting of the load measured last."""
        del best  # of all loads; a setting has a rate at every concurrency
        try:
            served = load_served(store, detail.study.name)
        except BadInputError:  # nothing was loaded yet
            return Overview(before="no setting was loaded yet")
        return _overview(served)

    def check_bundle(self, bundle: Bundle) -> None:
        """Find nothing: what a bundle says of servers is checked when its page is made."""


KIND: Kind = ServingKind()


def _overview(served: Served) -> Overview:
    scenario, settings = served.scenario, served_rows(served)
    levels = [str(c) for c in scenario.concurrency]
    rows = []
    for row in settings:
        cells = [number(row["tok_s"].get(c)) for c in levels]
        if row["outcome"] != Outcome.OK.value:
            cells[0] = row["outcome"]
        share = row["identical_share"]
        rows.append(
            (
                row["setting"],
                *cells,
                number(row["times_baseline"], 3),
                number(row["fresh_boots"], 3),
                number(None if share is None else 100 * share, 0, " %"),
            )
        )
    more = f"{served.others} more loads or set-ups are not shown."
    return Overview(
        heads=(
            *("setting", *(f"tok/s at {c}" for c in levels)),
            *("× baseline", "fresh boots", "identical"),
        ),
        rows=tuple(rows),
        figures=True,
        before=(
            f"search {served.search.id}, {scenario.target} with {scenario.drafting}; "
            f"{described(scenario)}; by {scenario.objective}"
        ),
        after=(
            *((more,) if served.others else ()),
            f"autotune report {served.study}: the page with all of it",
        ),
        document={"settings": settings},
    )


def served_rows(served: Served) -> list[dict[str, Any]]:
    """Return every setting of a load of a ``spec`` study, the baseline first, as JSON values.

    ``times_baseline`` is of the search's single boot, ``fresh_boots`` of those that confirm.
    """
    before = None if served.baseline is None else served.baseline.measurement.value
    rows = []
    for trial in served.searched:
        measurement, ratio = trial.measurement, served.confirmed_ratio(trial.candidate)
        value, levels = measurement.value, measurement.details.get("levels", {})
        rows.append(
            {
                "setting": setting(trial.candidate),
                "outcome": measurement.outcome.value,
                "tok_s": {c: rate_of(level) for c, level in levels.items()},
                "times_baseline": before / value if before and value else None,
                "fresh_boots": None if ratio is None else ratio.value,
                "identical_share": served.identical(trial),
            }
        )
    return rows
