"""Parts that pages of both halves have: failures, the environment, the commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from autotune.core import Outcome, Trial
from autotune.report.page import Block, Code, Section, Table, Text
from autotune.store.records import EnvironmentRecord, RunRecord

MOST_REASONS = 40
"""Different reasons listed; those of the most trials come first."""
MOST_TEXT = 400
"""Characters of a reason that are shown."""


def failures(trials: Iterable[Trial], where: Callable[[Trial], str]) -> list[Block]:
    """What did not work and why, alike ones together.

    Args:
        trials: all of them.
        where: names a trial's setting or workload for people.
    """
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        if trial.measurement.outcome is not Outcome.OK:
            reason = " ".join(trial.measurement.message.split())[:MOST_TEXT]
            groups.setdefault((trial.measurement.outcome.value, reason), []).append(trial)
    if not groups:
        return [Text("No trial failed.")]
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [
        (outcome, reason or "–", _some(dict.fromkeys(map(where, found))), str(len(found)))
        for (outcome, reason), found in ranked[:MOST_REASONS]
    ]
    blocks: list[Block] = [Table(("outcome", "reason", "where", "trials"), rows, words=3)]
    if len(ranked) > MOST_REASONS:
        blocks.append(Text(f"{len(ranked) - MOST_REASONS} more reasons are in the database."))
    return blocks


def _some(names: Iterable[str], most: int = 6) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def environment(environments: Sequence[Mapping[str, Any]], setup: Mapping[str, Any]) -> Section:
    """What the runs ran on, and under what trials were compared."""
    heads = ("environment", "value")
    blocks: list[Block] = [Table(heads, _flat(details), words=2) for details in environments]
    blocks.append(Table(("search", "value"), _flat(setup), words=2))
    return Section("Environment", blocks)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name} ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                rows += _flat(item, f"{prefix}{name} {number} ")
        elif isinstance(value, list):
            rows.append((f"{prefix}{name}", " ".join(map(str, value)) or "–"))
        else:
            rows.append((f"{prefix}{name}", "–" if value in (None, "") else str(value)))
    return rows


def commands(runs: Sequence[RunRecord]) -> Section:
    """What was typed, and how each run went."""
    rows = [
        (
            str(number),
            f"{run.started_at:%Y-%m-%d %H:%M:%S} UTC",
            run.status.value,
            f"{(run.ended_at - run.started_at).total_seconds():.0f}" if run.ended_at else "–",
        )
        for number, run in enumerate(runs, 1)
    ]
    blocks: list[Block] = [Code(line) for line in dict.fromkeys(run.command for run in runs)]
    return Section(
        "Command", [*blocks, Table(("run", "started", "ended as", "seconds"), rows, words=3)]
    )


def used(runs: Sequence[RunRecord], known: Sequence[EnvironmentRecord]) -> list[dict[str, Any]]:
    """The environments of runs, each once, oldest first."""
    details = {record.id: record.details for record in known}
    return [details[n] for n in dict.fromkeys(run.environment_id for run in runs)]
