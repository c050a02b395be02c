"""What the HTTP interface and the page offer, without HTTP: calls that take plain values."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from autotune.core import BadInputError
from autotune.machine import health
from autotune.machine.devices import GpuInfo
from autotune.store.jobs import QueueFullError, StoredJobs, request_digest
from autotune.store.records import ALIVE, ENDED, JobRecord, JobState, NewJob, Stop
from autotune.store.store import Store, utc_now
from autotune.util import flags
from autotune.util.edge import EdgeError, parse_json
from autotune.web import beforehand
from autotune.web.folders import JobFolder
from autotune.web.kinds import KINDS, gpus_needed, parse, shown_command
from autotune.web.policy import Policy
from autotune.web.problems import ProblemError
from autotune.web.runner import Runner
from autotune.web.turns import Turns

_AT_ONCE = 2
_SNAPSHOTS = 256
_MACHINE_S = 2.0
_BODY = {"kind", "args", "name", "priority", "max_time", "gpus"}


@dataclass(frozen=True)
class Limits:
    """How much the service takes.

    Attributes:
        queued: jobs that wait.
        streams: event and log streams that are open at once.
        log_chunk: bytes of a log in one answer.
    """

    queued: int = 5000
    streams: int = 256
    log_chunk: int = 1 << 20


@dataclass
class Service:
    """The parts of a running service."""

    store: Store
    runner: Runner
    policy: Policy
    gpus: Sequence[GpuInfo] = ()
    visible: str | None = None
    limits: Limits = field(default_factory=Limits)
    streams: int = 0
    stopping: bool = False
    checks: Turns = field(default_factory=lambda: Turns(1, waiting=128))
    plans: Turns = field(default_factory=lambda: Turns(_AT_ONCE))
    """Of plans and of reports, each of which takes a core for seconds."""
    _snapshots: dict[int, tuple[int, JobRecord, str]] = field(default_factory=dict)
    _asking: threading.Lock = field(default_factory=threading.Lock)
    _machine: dict[str, Any] = field(default_factory=dict)
    _machine_until: float = 0.0

    @property
    def jobs(self) -> StoredJobs:
        """The jobs."""
        return self.runner.jobs

    @property
    def root(self) -> Path:
        """The folder of jobs and results."""
        return self.runner.settings.root

    # ------------------------------------------------------------------ jobs

    def read_body(self, body: bytes) -> dict[str, Any]:
        """Read the JSON object of a request.

        Raises:
            ProblemError: it is none.
        """
        try:
            found = parse_json(body)
        except EdgeError as error:
            raise ProblemError(400, f"the body is {error}") from None
        if not isinstance(found, dict):
            raise ProblemError(400, "the body is no JSON object")
        return found

    def new_job(self, body: Mapping[str, Any], key: str | None) -> NewJob:
        """Make of a request the job that it asks for.

        Raises:
            AutotuneError: the command line would refuse it, or the operator does not allow it.
            ProblemError: something around the flags is wrong.
        """
        unknown = sorted(body.keys() - _BODY)
        if unknown:
            raise ProblemError(422, f"{unknown[0]}: unknown; known: {', '.join(sorted(_BODY))}")
        kind, args = body.get("kind"), body.get("args", {})
        if not isinstance(kind, str) or kind not in KINDS:
            raise ProblemError(422, f"kind: expected one of {', '.join(KINDS)}")
        if not isinstance(args, dict):
            raise ProblemError(422, "args: expected an object with the flags of the command")
        request = parse(kind, args)
        self.policy.check(request)
        most = max(1, len(self.gpus))
        needed = gpus_needed(request, self.gpus, self.visible)
        gpus = _number(body, "gpus", needed, 0, most)
        return NewJob(
            kind=kind,
            args=request.model_dump(mode="json"),
            name=_line(body, "name", 100),
            priority=_number(body, "priority", 0, -100, 100),
            max_time_s=_seconds(body),
            gpus_wanted=max(gpus, needed),
            idempotency_key=_key(key),
        )

    async def submit(self, body: Mapping[str, Any], key: str | None = None) -> JobRecord:
        """Queue a job, or give the one again that was queued with this key.

        Raises:
            AutotuneError: see :meth:`new_job`.
            ProblemError: also if its command would refuse it at any moment, too many wait, or the
                key stands for another job.
        """
        wanted = await run_in_threadpool(self.new_job, body, key)
        if not await run_in_threadpool(self.jobs.has_key, wanted.idempotency_key):
            await self.checks.run(beforehand.check, wanted, self.store, self.visible)
        return await run_in_threadpool(self._add, wanted)

    def _add(self, wanted: NewJob) -> JobRecord:
        try:
            job, is_new = self.jobs.add(wanted, self.limits.queued)
        except QueueFullError:
            raise ProblemError(
                429, f"{self.limits.queued} jobs wait already; cancel some", {"Retry-After": "60"}
            ) from None
        if not is_new and job.digest != request_digest(wanted):
            raise ProblemError(422, f"Idempotency-Key: was used for another job, {job.id}")
        self.runner.wake(job.id)
        return job

    def get(self, job_id: int) -> JobRecord:
        """Return a job.

        Raises:
            ProblemError: there is none of this number.
        """
        job = self.jobs.get(job_id)
        if job is None:
            raise ProblemError(404, f"no job {job_id}")
        return job

    def cancel(self, job_id: int) -> JobRecord:
        """Cancel a job: what waits never starts, what runs is stopped as Ctrl-C does."""
        job = self.jobs.change(
            job_id,
            {JobState.QUEUED, JobState.INTERRUPTED},
            state=JobState.CANCELLED,
            reason="cancelled before it ran on",
            ended_at=utc_now(),
        ) or self.jobs.change(job_id, {JobState.RUNNING}, state=JobState.STOPPING, stop=Stop.CANCEL)
        self.runner.wake(job_id)
        return job or self.get(job_id)  # it stops, or has ended, already

    def retry(self, job_id: int) -> JobRecord:
        """Queue a job that has ended once more; its command goes on from what is stored.

        Raises:
            ProblemError: it has not ended.
        """
        job = self.jobs.change(
            job_id,
            ENDED,
            state=JobState.QUEUED,
            reason="",
            exit_code=None,
            stop=Stop.NO,
            ended_at=None,
        )
        if job is None:
            raise ProblemError(409, f"job {job_id} is {self.get(job_id).state}: it has not ended")
        self.runner.wake(job_id)
        return job

    def remove(self, job_id: int) -> None:
        """Forget a job that has ended, with its log; its study and its files stay.

        Raises:
            ProblemError: it has not ended.
        """
        job = self.get(job_id)
        if job.state in ALIVE | {JobState.QUEUED} or not self.jobs.remove(job_id):
            raise ProblemError(409, f"job {job_id} is {job.state}: cancel it first")
        JobFolder.of(self.root, job_id).remove()
        self.runner.wake(job_id)

    def shown(self, job: JobRecord, *, briefly: bool = False) -> dict[str, Any]:
        """Describe a job as JSON values."""
        document = {  # as `as_json`, which copies deeply; lists of jobs are asked for often
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in vars(job).items()
            if name not in {"digest", "pid"}
        }
        progress = self.runner.progress(job)
        if briefly and progress is not None:
            progress = {name: value for name, value in progress.items() if name != "levels"}
        document |= {"progress": progress, "command": shown_command(job.kind, job.args)}
        return document if briefly else document | {"place": self.jobs.place(job)}

    def snapshot(self, job_id: int) -> tuple[int, JobRecord, str] | None:
        """Return a job's version, record and JSON; None if it is gone. Many may ask at once."""
        version = self.runner.versions[job_id]
        kept = self._snapshots.get(job_id)
        if kept is not None and kept[0] == version:
            return kept
        job = self.jobs.get(job_id)
        if job is None:
            self._snapshots.pop(job_id, None)
            return None
        if len(self._snapshots) > _SNAPSHOTS:
            self._snapshots.clear()
        self._snapshots[job_id] = (version, job, json.dumps(self.shown(job)))
        return self._snapshots[job_id]

    def machine(self) -> dict[str, Any]:
        """Tell the memory and clocks of this machine, asked at most every two seconds.

        Where nvidia-smi hangs one request waits for it, and the others get what it said before.
        """
        if time.monotonic() >= self._machine_until and self._asking.acquire(
            blocking=not self._machine
        ):
            try:
                if time.monotonic() >= self._machine_until:
                    self._machine = health.now()
                    self._machine_until = time.monotonic() + _MACHINE_S
            finally:
                self._asking.release()
        return self._machine

    async def validate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Say what the command line says before it starts; nothing is started.

        Raises:
            AutotuneError: as :meth:`new_job`.
            ProblemError: what the command refuses, in its words.
        """
        job = await run_in_threadpool(self.new_job, body, None)
        return await self.plans.run(beforehand.plan_of, job, self.runner.settings)

    # ------------------------------------------------------------------ files

    def artifacts(self, job: JobRecord) -> dict[str, Path]:
        """Return the files of a job by name: its own, and those of the study that it is about."""
        folder = JobFolder.of(self.root, job.id)
        found = {p.name: p for p in (folder.result(job), folder.log, folder.events) if p.is_file()}
        study = (self.runner.progress(job) or {}).get("study") or job.args.get("study")
        if isinstance(study, str):
            place = self.root / study
            inside = sorted(place.rglob("*")) if place.is_dir() else []
            found |= {
                str(path.relative_to(place)): path
                for path in inside
                if path.is_file() and not path.name.startswith(".") and self.policy.holds(path)
            }
        return found


def _line(body: Mapping[str, Any], name: str, longest: int) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str) or len(value) > longest or not (value + "x").isprintable():
        raise ProblemError(422, f"{name}: expected a line of up to {longest} characters")
    return value


def _number(body: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ProblemError(422, f"{name}: expected a whole number from {least} to {most}")
    return value


def _seconds(body: Mapping[str, Any]) -> float | None:
    value = body.get("max_time")
    if value is None:
        return None
    try:
        return flags.seconds(str(value), "max_time")
    except BadInputError as error:
        raise ProblemError(422, str(error)) from None


def _key(key: str | None) -> str | None:
    if key is not None and not (1 <= len(key) <= 200 and key.isascii() and key.isprintable()):
        raise ProblemError(400, "Idempotency-Key: expected up to 200 printable ASCII characters")
    return key
