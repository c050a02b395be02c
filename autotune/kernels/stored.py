"""A stored study of the MoE half, read back: what was tuned, how it compares, and on what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.core import BadInputError, Basis, Candidate, Outcome, Phase, Selection, Trial
from autotune.decide.selection import select_confirmed
from autotune.decide.stats import Ratio, geometric_mean, paired_ratio
from autotune.kernels.config_file import look_up
from autotune.kernels.decide.confirm import comparisons, deciding, loses, midpoints
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.predict.choose import select_predicted
from autotune.kernels.propose import origin_of, trials_by_workload
from autotune.kind import MOE
from autotune.machine.devices import Device, get_device
from autotune.report.parts import used
from autotune.store.records import SearchRecord, StudyDetail
from autotune.store.store import Store


@dataclass(frozen=True)
class Row:
    """One key of the file. Times in µs per call of ``fused_experts``.

    Attributes:
        m: tokens.
        config: what the file says.
        default: vLLM's own default at this M; None where it was not tried.
        us: of ``config``.
        default_us: of ``default``, in the same comparison; None where it fails.
        ratio: default over ``config`` where that is another row.
        tried: the best candidate that did not gain enough, default over candidate; None where
            there was none beside the default.
        rounds: of the comparison; 0 for a prediction.
        error: relative error of the output against float32 arithmetic.
        origin: where it was proposed first: vLLM's default, a file, the cost model or the search.
        added: not asked for, but pinned to the default because a neighbour's row lost here.
    """

    m: int
    config: Candidate
    default: Candidate | None
    us: float
    default_us: float | None
    ratio: Ratio | None
    tried: Ratio | None
    rounds: int
    error: float | None
    added: bool = False
    origin: str = ""

    @property
    def pinned(self) -> bool:
        """Whether the row is vLLM's default."""
        return self.config == self.default


@dataclass(frozen=True)
class Gap:
    """The file's row at a batch size between its keys: default over file, side by side."""

    m: int
    key: int
    ratio: Ratio


@dataclass(frozen=True)
class Tuned:
    """A stored study, ready to be exported.

    Attributes:
        study: its name.
        device: tuned for.
        shape: of the layer.
        basis: measured or predicted.
        rows: by M.
        unconfirmed: batch sizes that were searched but never met the default side by side.
        gaps: comparisons between the keys.
        setup: of the search: versions, kernel hash, space, seed.
        environments: of its runs, oldest first.
        commands: of its runs, as typed, each once.
        trials: how many there are.
        gpus: UUIDs of the GPUs that made them; none where the trials do not say.
    """

    study: str
    device: Device
    shape: MoeShape
    basis: Basis
    rows: dict[int, Row]
    unconfirmed: tuple[int, ...]
    gaps: tuple[Gap, ...]
    setup: dict[str, Any]
    environments: tuple[dict[str, Any], ...]
    commands: tuple[str, ...]
    trials: int
    gpus: tuple[str, ...]

    @property
    def configs(self) -> dict[int, Candidate]:
        """The rows of the file."""
        return {m: row.config for m, row in self.rows.items()}

    @property
    def overall(self) -> float:
        """See :func:`overall_speedup`."""
        ratios = [row.ratio for row in self.rows.values()]
        return overall_speedup(ratio.value if ratio else None for ratio in ratios)

    @property
    def file_name(self) -> str:
        """VLLM's name for the file."""
        return self.shape.config_file_name(self.device.vllm_name)


def folder_of(out: Path, study: str, basis: Basis) -> Path:
    """Return where the files of a study lie."""
    return out / study / basis.value


def study_device(store: Store, study: str, ref: str) -> Device:
    """Return the device of ``--device``, which must be the study's own.

    Raises:
        BadInputError: no such device, or the study is of another one.
    """
    detail = store.get_study(study)
    name = detail.study.identity.get("device")
    device = _described(detail) if ref == name else get_device(ref)
    if device.name != name:
        raise BadInputError(f"--device {ref}: study {study!r} was made for {name}")
    return device


def _described(detail: StudyDetail) -> Device:
    """Return the device of a study: of a file, or as its driver described it to the search."""
    for search in detail.searches:
        if told := search.setup.get("device_described"):
            return Device.model_validate(told)
    return get_device(detail.study.identity["device"])


def overall_speedup(speedups: Iterable[float | None]) -> float:
    """Geometric mean over all keys; one without a speed-up, such as a kept default, counts as 1."""
    return geometric_mean([speedup or 1.0 for speedup in speedups])


def load(
    store: Store,
    study: str,
    min_gain: float,
    *,
    setup: Mapping[str, Any] | None = None,
    device: Device | None = None,
) -> Tuned:
    """Read a study and choose its rows again by the stored trials.

    The search of the last run is taken, unless a ``setup`` says which; one that was measured goes
    before any predicted one.

    Args:
        store: with the study.
        study: its name.
        min_gain: a row that gains less is vLLM's default.
        setup: of the search to take.
        device: tuned for, where it is none of those that come with the project.

    Raises:
        BadInputError: no such study, of another kind, or nothing tuned in it yet.
    """
    detail = store.get_study(study, MOE)
    device = device or _described(detail)
    runs = {run.search_id: run for run in detail.all_runs}  # the last of each search

    def latest(record: SearchRecord) -> tuple[bool, int]:
        return record.setup["basis"] == Basis.MEASURED.value, runs[record.id].id

    wanted = [r for r in detail.searches if r.id in runs and setup in (None, r.setup)]
    for record in sorted(wanted, key=latest, reverse=True):
        found = _tuned(store, detail, record, device, min_gain)
        if found.rows or found.unconfirmed:
            return found
    raise BadInputError(f"study {study!r} has tuned nothing yet; run `autotune moe` again")


def _tuned(
    store: Store, detail: StudyDetail, record: SearchRecord, device: Device, min_gain: float
) -> Tuned:
    shape = MoeShape.from_json(detail.study.identity["shape"])
    trials = store.trials(record)
    found = _chosen(shape, trials, store, record, min_gain)
    own = [run for run in detail.all_runs if run.search_id == record.id]
    return Tuned(
        study=detail.study.name,
        device=device,
        shape=shape,
        basis=Basis(record.setup["basis"]),
        rows=dict(sorted(found.rows.items())),
        unconfirmed=found.unconfirmed,
        gaps=found.gaps,
        setup=record.setup,
        environments=tuple(used(own, detail.environments)),
        commands=tuple(dict.fromkeys(run.command for run in own)),
        trials=len(trials),
        gpus=_gpus(trials),
    )


def _gpus(trials: Iterable[Trial]) -> tuple[str, ...]:
    """The UUIDs that trials name; an older one has none, or an index alone."""
    found = (trial.measurement.details.get("gpu") for trial in trials)
    return tuple(dict.fromkeys(uuid for uuid in found if uuid and not uuid.isdecimal()))


@dataclass(frozen=True)
class _Chosen:
    rows: dict[int, Row]
    unconfirmed: tuple[int, ...]
    gaps: tuple[Gap, ...]


def _chosen(
    shape: MoeShape, trials: Sequence[Trial], store: Store, record: SearchRecord, min_gain: float
) -> _Chosen:
    by_workload = trials_by_workload(trials)
    own = {w.spec["m"]: by_workload.get(w.key, []) for w in store.workloads(record)}
    searched = {m: found for m, found in own.items() if _ok(found, Phase.SEARCH)}
    rows: dict[int, Row] = {}
    unconfirmed = []
    for m, found in searched.items():
        workload = MoeWorkload(shape, m)
        if record.setup["basis"] == Basis.PREDICTED.value:
            row: Row | None = _predicted(workload, found, min_gain)
        else:
            row = _confirmed(workload, found, min_gain)
        if row is None:
            unconfirmed.append(m)
        else:
            rows[m] = replace(row, origin=origin_of(row.config, row.default, found))
    gaps, pinned = _between(rows, own) if rows else ((), {})
    return _Chosen(rows | pinned, tuple(sorted(set(unconfirmed) - set(pinned))), gaps)


def _ok(trials: Sequence[Trial], phase: Phase) -> list[Trial]:
    return [t for t in trials if t.phase is phase and t.measurement.outcome is Outcome.OK]


def latest_baseline(trials: Iterable[Trial]) -> Trial | None:
    """VLLM's default; one that failed and was tried again has several trials."""
    return max(
        (t for t in trials if t.phase is Phase.BASELINE), key=lambda t: t.sequence, default=None
    )


def _predicted(workload: MoeWorkload, trials: Sequence[Trial], min_gain: float) -> Row:
    incumbent = latest_baseline(trials)
    selection = select_predicted(workload, incumbent, _ok(trials, Phase.SEARCH), min_gain)
    ratio = None
    if selection.speedup is not None and not selection.kept_incumbent:
        ratio = Ratio(selection.speedup, selection.speedup, selection.speedup, 0)
    return _row(workload.m, selection, incumbent, ratio, None)


def _confirmed(workload: MoeWorkload, trials: Sequence[Trial], min_gain: float) -> Row | None:
    """The row by the comparison that decides it; None without one."""
    baseline = latest_baseline(trials)
    group = {} if baseline is None else deciding(trials, baseline.candidate)
    if baseline is None or not group:
        return None
    default = group[baseline.candidate]
    selection = select_confirmed(workload, default, list(group.values()), min_gain)
    ratios = {
        t.candidate: paired_ratio(default.measurement.samples, t.measurement.samples)
        for t in group.values()
        if t.candidate != default.candidate
        and t.measurement.outcome is Outcome.OK
        and default.measurement.outcome is Outcome.OK
    }
    chosen = ratios.pop(selection.winner.candidate, None)
    tried = max(ratios.values(), key=lambda ratio: ratio.value, default=None)
    return _row(workload.m, selection, default, chosen, tried)


def _row(
    m: int, selection: Selection, default: Trial | None, ratio: Ratio | None, tried: Ratio | None
) -> Row:
    winner = selection.winner
    assert winner.measurement.value is not None  # noqa: S101 - a selection holds no failure
    return Row(
        m=m,
        config=winner.candidate,
        default=default.candidate if default else None,
        us=winner.measurement.value,
        default_us=default.measurement.value if default else None,
        ratio=ratio,
        tried=tried if selection.kept_incumbent else None,
        rounds=ratio.pairs if ratio else len(winner.measurement.samples),
        error=winner.measurement.details.get("error"),
    )


def _between(
    rows: Mapping[int, Row], own: Mapping[int, Sequence[Trial]]
) -> tuple[tuple[Gap, ...], dict[int, Row]]:
    """Stored comparisons between the keys, and the keys that they add."""
    gaps, pinned = [], {}
    for m in midpoints(list(rows)):
        compared = comparisons(own.get(m, ()))
        group = dict(compared[-1]) if compared else {}
        key = look_up({key: key for key in rows}, m)
        file = group.pop(rows[key].config, None)
        if file is None or len(group) != 1:
            continue  # not compared, or with another row than the file has now
        (default,) = group.values()
        if default.measurement.outcome is not Outcome.OK:
            continue
        ratio = Ratio(0.0, 0.0, 0.0, 0)
        if file.measurement.outcome is Outcome.OK:
            ratio = paired_ratio(default.measurement.samples, file.measurement.samples)
        gaps.append(Gap(m, key, ratio))
        if loses(ratio):
            kept = Selection(default, default, 1.0, kept_incumbent=True)
            row = _row(m, kept, default, None, ratio)
            pinned[m] = Row(**{**vars(row), "added": True})
    return tuple(gaps), pinned
