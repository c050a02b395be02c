"""What the commands for any study ask of a kernel study; see :class:`autotune.kind.Kind`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.core import BadInputError, Basis
from autotune.kernels.config_file import FIELDS
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.stored import folder_of, study_device
from autotune.kind import Kind, Overview
from autotune.report.page import Page
from autotune.store.bundle import Bundle
from autotune.store.records import StudyDetail
from autotune.store.store import Store
from autotune.util import flags

_BEST = "Best is what was found; a row of the file changes only where it gains enough."


class KernelKind:
    """A kernel study has a page for each basis, and a best config for each batch size."""

    def page(
        self,
        store: Store,
        study: str,
        *,
        out: Path | None = None,
        min_gain: str | None = None,
        device: str | None = None,
    ) -> Page:
        """Make the page of the basis that goes first: measured before predicted."""
        from autotune.kernels.report.page import page_of  # noqa: PLC0415 - loads plotly

        return page_of(
            store,
            study,
            min_gain=None if min_gain is None else flags.fraction(min_gain, "--min-gain"),
            device=None if device is None else study_device(store, study, device),
            out=out,
        )

    def folder(self, out: Path, page: Page, study: str) -> Path:
        """Return the folder of the page's basis."""
        return folder_of(out, study, Basis(page.basis))

    def overview(self, store: Store, detail: StudyDetail, best: list[dict[str, Any]]) -> Overview:
        """List the best candidate of every batch size."""
        del store, detail  # the best trials say all of it
        return Overview(
            heads=(
                "search",
                "workload",
                "basis",
                "best µs",
                "default µs",
                "BM/BN/BK/G/warps/stages",
            ),
            rows=tuple(
                (
                    str(row["search"]),
                    row["workload"],
                    row["basis"],
                    f"{row['best_us']:.1f}",
                    "" if row["default_us"] is None else f"{row['default_us']:.1f}",
                    "/".join(str(row["config"][name]) for name in FIELDS),
                )
                for row in best
            ),
            after=(_BEST,),
        )

    def check_bundle(self, bundle: Bundle) -> None:
        """Check that every batch size is of the study's own shape.

        Raises:
            BadInputError: one is of another.
        """
        shape = MoeShape.from_json(bundle.study.identity["shape"])
        for search in bundle.searches:
            for workload in search.workloads:
                if MoeWorkload(shape, workload.spec["m"]).key != workload.key:
                    raise BadInputError(f"workload {workload.label!r} is not of the study's shape")


KIND: Kind = KernelKind()
