"""A schedule of gamma by batch size: as JSON values for ``schedule.json``, and for people."""

from __future__ import annotations

import json
from typing import Any

from autotune.serving.job import Result
from autotune.serving.report.tables import setting


def schedule_document(result: Result) -> dict[str, Any]:
    """The schedule for JSON; rates are measured tokens per second by gamma and concurrency.

    ``num_speculative_tokens_per_batch_size`` is in vLLM's own form, None where there is none.
    """
    found = result.schedule
    settings = None if found.candidate is None else result.plan.recipe.settings(found.candidate)
    known = found.ratio is not None and found.ratio.low > 0
    return {
        "recommended": found.recommended,
        "said": found.said,
        "num_speculative_tokens_per_batch_size": None
        if found.ranges is None
        else [list(entry) for entry in found.ranges],
        "speculative_config": settings.speculative if settings else None,
        "serve": result.plan.launcher.shell_line(settings) if settings else None,
        "against": None if found.against is None else setting(found.against),
        "speedup": found.ratio.value if found.ratio else None,
        "interval": [found.ratio.low, found.ratio.high] if found.ratio and known else None,
        "identical_share": found.identical,
        "basis": result.plan.basis.value,
        "measured_tok_s": {
            str(g): {str(c): r for c, r in v.items()} for g, v in found.table.items()
        },
    }


def schedule_section(result: Result) -> list[str]:
    """The lines of the report."""
    found = schedule_document(result)
    lines = ["## Gamma by batch size", ""]
    if found["serve"] is None:
        return [*lines, f"No schedule: {found['said']}.", ""]
    verdict = "Recommended" if found["recommended"] else "Not recommended"
    ranges = json.dumps(found["num_speculative_tokens_per_batch_size"])
    compared = f"against {found['against']}" if found["against"] else ""
    lines += [f"`num_speculative_tokens_per_batch_size` {ranges} {compared}: {found['said']}."]
    return [*lines, f"{verdict}.", "", f"    {found['serve']}", ""]
