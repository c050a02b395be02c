"""A stored search of a ``spec`` study, read back: its trials by what they were for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from autotune.core import BadInputError, Candidate, Outcome, Phase, Trial, digest
from autotune.decide.stats import Ratio, paired_ratio
from autotune.kind import SPEC
from autotune.serving.decide.quality import NOT_COMPARED, Compared, compared, without_speculation
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import Beside, SpecScenario
from autotune.store.records import DatedTrial, SearchRecord
from autotune.store.store import Store


@dataclass(frozen=True)
class Apart:
    """Fresh boots of one round that several commands made, which did not take turns.

    Attributes:
        seconds: from the first to the last.
        environments: how many the commands ran in; another GPU of the same name is another one.
    """

    seconds: float
    environments: int


@dataclass(frozen=True)
class Served:
    """One load of a stored search.

    Attributes:
        study: its name.
        search: under which set-up.
        scenario: the load.
        searched: one trial of every setting, the baseline first.
        confirmed: the trials of fresh boots, by setting and round; those of the last comparison
            where servers were up side by side.
        dated: every trial of this load, in the order stored.
        others: other loads and searches of the study that have trials.
        rounds: which round a trial's workload is, by the workload's key; 0 is the search.
        environments: in which a run was, by its id.
        beside: how the servers of :attr:`confirmed` ran; None one after the other.
        controls: the baseline on further places of a cluster.
    """

    study: str
    search: SearchRecord
    scenario: SpecScenario
    searched: list[Trial]
    confirmed: dict[Candidate, dict[int, Trial]]
    dated: list[DatedTrial]
    others: int
    rounds: Mapping[str, int]
    environments: Mapping[int, int]
    beside: Beside | None = None
    controls: Sequence[Trial] = ()

    @property
    def ok(self) -> list[Trial]:
        """Those of :attr:`searched` that have a value."""
        return [t for t in self.searched if t.measurement.outcome is Outcome.OK]

    @property
    def baseline(self) -> Trial | None:
        """No speculation, where it was measured."""
        return next((t for t in self.ok if t.phase is Phase.BASELINE), None)

    @property
    def boots(self) -> int:
        """Servers started for this search."""
        return sum(d.trial.measurement.details.get("boots", 0) for d in self.dated)

    def apart(self, candidates: Collection[Candidate]) -> dict[int, Apart]:
        """The rounds of several commands."""
        latest: dict[int, dict[Candidate, DatedTrial]] = {}
        for dated in self.dated:
            number = self.rounds[dated.trial.workload_key]
            if number and dated.trial.candidate in candidates:
                latest.setdefault(number, {})[dated.trial.candidate] = dated
        found = {}
        for number, made in latest.items():
            times = [one.created_at for one in made.values()]
            runs = {one.run_id for one in made.values()}
            if len(runs) > 1:
                places = {self.environments[run] for run in runs}
                found[number] = Apart((max(times) - min(times)).total_seconds(), len(places))
        return found

    def compared(self, trial: Trial) -> Compared:
        """Compare the outputs with those without speculation."""
        if gamma_of(trial.candidate) in (None, 0) or self.baseline is None:
            return NOT_COMPARED
        reference = without_speculation(trial.candidate, self.baseline.candidate)
        found = next((t for t in self.ok if t.candidate == reference), None)
        return compared(trial, found)

    def identical(self, trial: Trial) -> float | None:
        """Share of outputs as without speculation; None where there is nothing to compare."""
        return self.compared(trial).identical

    def confirmed_ratio(
        self, candidate: Candidate, samples: Callable[[Trial], Sequence[float]] | None = None
    ) -> Ratio | None:
        """Speed over the baseline's in the rounds in which both were booted again.

        Args:
            candidate: a setting.
            samples: times of a trial's repeats, in any unit; those by the objective if None.
        """
        baseline = self.baseline
        if baseline is None or candidate == baseline.candidate:
            return None
        theirs, ours = self.confirmed.get(baseline.candidate, {}), self.confirmed.get(candidate, {})
        slower: list[float] = []
        faster: list[float] = []
        for number in sorted(theirs.keys() & ours.keys()):
            pair = theirs[number].measurement, ours[number].measurement
            if all(m.outcome is Outcome.OK for m in pair):
                slower += samples(theirs[number]) if samples else pair[0].samples
                faster += samples(ours[number]) if samples else pair[1].samples
        if not slower or len(slower) != len(faster):
            return None
        return paired_ratio(slower, faster)


def folder_of(out: Path, study: str) -> Path:
    """Return where the files of a study lie."""
    return out / study / "spec"


def gamma_of(candidate: Candidate) -> int | None:
    """Drafted tokens; None where it is not known."""
    value = candidate.params.get(GAMMA)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def load_served(
    store: Store,
    study: str,
    about: tuple[Mapping[str, Any], SpecScenario] | None = None,
    wanted: Callable[[Beside | None], bool] = lambda _: True,
) -> Served:
    """Read a study back.

    Args:
        store: with the study.
        study: its name.
        about: the set-up of the search and the load to take; those of the last trial if None.
        wanted: tells a confirmation by how its servers ran; of several the one made last is taken.

    Raises:
        BadInputError: no such study, of another kind, or nothing measured in it yet.
    """
    detail = store.get_study(study, SPEC)
    loads = {
        (w.search_id, w.key): _scenario(w.spec) for w in detail.workloads if _is_scenario(w.spec)
    }
    made = {search.id: store.dated_trials(search) for search in detail.searches}
    used = {
        (number, loads[number, d.trial.workload_key].in_round(0)): d
        for number, dated in made.items()
        for d in dated
        if (number, d.trial.workload_key) in loads
    }
    if about is not None:
        number = next(s.id for s in detail.searches if digest(s.setup) == digest(about[0]))
        load = replace(about[1], tasks=())
    elif used:
        number, load = max(used, key=lambda key: used[key].created_at)
    else:
        raise BadInputError(f"study {study!r} has measured nothing yet; run `autotune spec` again")
    (search,) = (s for s in detail.searches if s.id == number)
    own = {
        key: known
        for (search_id, key), known in loads.items()
        if search_id == number and known.in_round(0) == load
    }
    rounds = {key: known.round for key, known in own.items()}
    dated = [d for d in made[number] if d.trial.workload_key in rounds]
    apart = [d.trial for d in dated if own[d.trial.workload_key].control]
    beside, counting = _confirmation([d.trial for d in dated if d.trial not in apart], own, wanted)
    searched, confirmed = _by_purpose(counting, rounds)
    places = {run.id: run.environment_id for run in detail.all_runs}
    others = len(used) - 1
    return Served(
        study, search, load, searched, confirmed, dated, others, rounds, places, beside, apart
    )


def _confirmation(
    trials: Sequence[Trial],
    loads: Mapping[str, SpecScenario],
    wanted: Callable[[Beside | None], bool],
) -> tuple[Beside | None, list[Trial]]:
    """How the servers of a confirmation ran; its trials, and all of the search."""
    ways = [loads[t.workload_key].beside for t in trials if loads[t.workload_key].round]
    last = next((way for way in reversed(ways) if wanted(way)), ways[-1] if ways else None)
    kept = [
        t for t in trials if not loads[t.workload_key].round or loads[t.workload_key].beside == last
    ]
    return last, kept


def _by_purpose(
    trials: Sequence[Trial], rounds: Mapping[str, int]
) -> tuple[list[Trial], dict[Candidate, dict[int, Trial]]]:
    """Those of the search, the baseline first, and those of fresh boots."""
    confirmed: dict[Candidate, dict[int, Trial]] = {}
    searched: dict[Candidate, Trial] = {}
    for trial in trials:
        number = rounds[trial.workload_key]
        if number:
            confirmed.setdefault(trial.candidate, {})[number] = trial
        else:
            searched[trial.candidate] = trial
    first = sorted(searched.values(), key=lambda t: t.phase is not Phase.BASELINE)
    return first, confirmed


def _is_scenario(spec: Mapping[str, Any]) -> bool:
    """Not the load that memory utilizations are tried with, which has no repeats."""
    return "repeats" in spec


def _scenario(spec: Mapping[str, Any]) -> SpecScenario:
    """The load; the tasks that its first round evaluated too are left out."""
    known = {field.name for field in fields(SpecScenario)} - {"tasks"}
    values = {name: value for name, value in spec.items() if name in known}
    if isinstance(beside := values.get("beside"), Mapping):
        values["beside"] = Beside(**beside)
    lists = {name: tuple(spec.get(name, ())) for name in ("concurrency", "kinds", "context")}
    lists["slo"] = tuple(spec.get("slo", {}).items())
    return SpecScenario(**values | lists)


def level_repeats(trial: Trial, concurrency: int) -> Sequence[float]:
    """Aggregate tok/s of every repeat; empty where it was not loaded so."""
    levels: Mapping[str, Any] = trial.measurement.details.get("levels", {})
    found: Sequence[float] = levels.get(str(concurrency), {}).get("repeats", ())
    return found
