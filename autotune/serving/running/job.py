"""The job behind ``autotune spec --launcher url``: one setting measured, nothing compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from autotune.core import (
    BadInputError,
    Basis,
    Candidate,
    Job,
    Measurement,
    Measurer,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
    Trial,
)
from autotune.export.files import Exporter, json_file, write_files
from autotune.kind import SPEC, Run, tune
from autotune.machine.environment import environment
from autotune.report import files
from autotune.report.page import Page
from autotune.serving.make_plan import scenario_of
from autotune.serving.measure.load import LoadOptions
from autotune.serving.measure.measurer import ServingMeasurer
from autotune.serving.measure.prompts import Prompt, load_prompts
from autotune.serving.plan import default_study
from autotune.serving.recipe import GAMMA
from autotune.serving.request import SpecRequest
from autotune.serving.running.server import Existing, look, parse_headers, parse_url
from autotune.serving.scenario import SpecScenario, tokens_of
from autotune.serving.server.launchers import UrlLauncher
from autotune.serving.server.server import ServeSettings
from autotune.store.run_log import StoredLog
from autotune.store.store import Store
from autotune.tune import measured
from autotune.util import flags

AS_SERVED = "as served"
"""What stands for the drafter of a server that does not name it."""
_ANSWERS_S = 60.0
NOTE = (
    "One setting, as it runs: nothing was compared and nothing is recommended. What others asked "
    "of the server meanwhile counts in"
)


@dataclass(frozen=True)
class ExistingPlan:
    """What is measured.

    Attributes:
        study: the name.
        launcher: its URL and headers.
        server: what it said of itself.
        scenario: the load.
        prompts: of the load.
        request_timeout_s: seconds that a request may take.
        command: as typed, without what is secret.
    """

    kind: ClassVar[str] = SPEC
    study: str
    launcher: UrlLauncher
    server: Existing
    scenario: SpecScenario
    prompts: tuple[Prompt, ...]
    request_timeout_s: float
    command: str

    @property
    def candidate(self) -> Candidate:
        """The one setting: gamma as the server's counters tell it."""
        gamma = self.server.gamma
        return Candidate.of({GAMMA: "unknown" if gamma is None else gamma})

    def identity(self) -> dict[str, Any]:
        """What a study is about: must not change between two commands."""
        return {"target": self.server.model, "drafter": AS_SERVED}

    def setup(self) -> dict[str, Any]:
        """Under what trials can be compared: a server that was started anew is another."""
        return {
            "basis": Basis.MEASURED.value,
            **self.launcher.as_json(),
            "server": self.server.as_json(),
        }


@dataclass(frozen=True)
class ExistingResult:
    """What was measured; ``reused`` where an earlier command did it on the same server."""

    plan: ExistingPlan
    trial: Trial
    reused: bool


def make_existing_plan(request: SpecRequest, headers: Sequence[str]) -> ExistingPlan:
    """Read the flags and ask the server what it is.

    Args:
        request: the flags, with the server's URL; the target may be missing.
        headers: ``NAME: VALUE`` texts.

    Raises:
        BadInputError: a flag that cannot be used, another model, no vLLM server.
        MissingEnvironmentError: nobody answers at the URL.
    """
    prompts, url = load_prompts(request.prompts), request.url or ""
    sent = parse_headers(headers)
    asked = UrlLauncher(parse_url(url), sent)
    server = look(asked, prompts, request.only_target or None)
    longest = max(request.contexts, default=0)
    if server.context is not None and longest > server.context:
        raise BadInputError(
            f"--context {tokens_of(longest)} is longer than the {server.context} tokens that this "
            "server takes; ask for less"
        )
    return ExistingPlan(
        study=request.study or default_study(server.model, "as-served"),
        launcher=UrlLauncher(url, sent, server.model),
        server=server,
        scenario=scenario_of(
            request,
            target=server.model,
            drafter=AS_SERVED,
            prompts=prompts,
            chat=server.chat,
        ),
        prompts=prompts,
        request_timeout_s=flags.seconds(request.request_timeout, "--request-timeout"),
        command=request.command or request.command_line("spec"),
    )


def _as_it_is(model: str, _: Candidate) -> ServeSettings:
    """Leave a server that runs already with the settings that it has."""
    return ServeSettings(model)


def existing_measurer(plan: ExistingPlan, logs: Path) -> ServingMeasurer:
    """Make the measurer of the plan's server; ``logs`` is a folder for its output."""
    return ServingMeasurer(
        plan.launcher,
        partial(_as_it_is, plan.server.model),
        LoadOptions(plan.prompts, plan.request_timeout_s),
        logs,
        start_timeout_s=_ANSWERS_S,
    )


def run_existing(plan: ExistingPlan, store: Store, measurer: Measurer) -> ExistingResult:
    """Measure the server, unless this was done since it was started.

    Args:
        plan: what to measure.
        store: takes the trial.
        measurer: such as :func:`existing_measurer`; entered here.

    Raises:
        NoFeasibleCandidateError: it did not answer the load.
        BadInputError: another process works on the study, or it is about something else.
    """
    return tune(plan, store, measurer, lambda _: None, _measured)


def _measured(run: Run[ExistingPlan, Measurer]) -> ExistingResult:
    plan, log = run.plan, run.log
    stored = log.load(plan.scenario, Phase.BASELINE)
    known = [t for t in stored if t.measurement.outcome is Outcome.OK]
    if known and plan.server.started is not None:  # the same process: nothing is new
        return ExistingResult(plan, known[-1], reused=True)
    measurement = _measurement(plan, run.measurer, log)
    trial = Trial(plan.candidate, plan.scenario.key, Phase.BASELINE, len(stored), measurement)
    log.append(plan.scenario, trial)
    if measurement.outcome is not Outcome.OK:
        raise NoFeasibleCandidateError(
            f"{plan.launcher.root} could not be measured: {measurement.message} "
            f"({measurement.outcome.value})"
        )
    return ExistingResult(plan, trial, reused=False)


def _measurement(plan: ExistingPlan, measurer: Measurer, log: StoredLog) -> Measurement:
    job = Job(plan.candidate, plan.scenario)
    if plan.server.started is None:  # repeats of another command may be of another process
        (found,) = (one for one in measurer.measure([job]) if isinstance(one, Measurement))
    else:
        (found,) = measured([job], measurer, log)
    return found


def existing_document(result: ExistingResult) -> dict[str, Any]:
    """What was measured, and of what; rates in tokens per second, times in ms."""
    plan, measurement = result.plan, result.trial.measurement
    return {
        "basis": measurement.basis.value,
        "launcher": "url",
        "url": plan.launcher.root,
        "server": plan.server.as_json(),
        "speculation": plan.server.speculation,
        "note": NOTE,
        "warnings": existing_warnings(plan),
        "study": plan.study,
        "command": plan.command,
        "scenario": plan.scenario.as_json(),
        "us_per_token": measurement.value,
        "levels": measurement.details["levels"],
        "levels_by_slice": measurement.details.get("slices", {}),
        "kv_cache_tokens": measurement.details.get("kv_cache_tokens"),
        "client_environment": environment(),
        "boots": 0,
        "reused": result.reused,
    }


def existing_warnings(plan: ExistingPlan) -> list[str]:
    """What a user must know beside the numbers."""
    server, said = plan.server, []
    if server.running:
        said.append(f"{server.running} requests of others were running when we looked")
    if server.gamma is None:
        said.append("/metrics does not answer: neither gamma nor acceptance can be known")
    if not server.chat:
        said.append("it takes no chat requests: prompts were sent as plain completions")
    return said


FILES: dict[str, Exporter[tuple[ExistingResult, Page]]] = {
    "report.html": lambda done: files.html(done[1]),
    "report.md": lambda done: files.markdown(done[1]),
    "served.json": lambda done: json_file(existing_document(done[0])),
}
"""Each file and what makes it, in the order in which they are written."""


def write_existing(result: ExistingResult, page: Page, folder: Path) -> list[Path]:
    """Write the files, each whole; ``served.json`` last.

    Raises:
        BadInputError: the folder cannot be written.
        MissingEnvironmentError: no space is left.
    """
    return write_files(folder, FILES, (result, page))
