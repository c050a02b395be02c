"""The one thread that starts jobs, looks after them and notes how they end.

Whoever wants something of a job changes its row and calls :meth:`Runner.wake`. A job's process
holds the job's lock from its first instruction on (the descriptor is inherited), so a service that
was killed and started again knows which jobs still run, and adopts them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autotune.core import AutotuneError
from autotune.store.jobs import StoredJobs
from autotune.store.records import ALIVE, JobRecord, JobState, Stop
from autotune.web import queue
from autotune.web.folders import JobFolder, event_of, lines_from, size_of
from autotune.web.kinds import command_of, parse
from autotune.web.progress import JobProgress

TICK_S = 0.2
_NEXT = 100
"""Jobs of each sort that are looked at: of the first, some may be of studies that are worked on."""
KILL_AFTER_S = 180.0
"""Ctrl-C lets a server stop, which takes half a minute; beyond this the group is killed."""


@dataclass(frozen=True)
class Settings:
    """What the operator decided.

    Attributes:
        root: folder of jobs and results.
        db: URL of the database.
        capacity: what may run at once.
        resume: go on with interrupted jobs at the start.
        most_log: bytes of a job's log.
        program: what runs a command, and is given a lock, a file and its words.
    """

    root: Path
    db: str
    capacity: queue.Capacity = field(default_factory=queue.Capacity)
    resume: bool = True
    most_log: int = 256 << 20
    program: tuple[str, ...] = (sys.executable, "-m", "autotune.web.child")


@dataclass
class Live:
    """A job whose process runs."""

    job: JobRecord
    folder: JobFolder
    process: subprocess.Popen[bytes] | None
    """None for one that an earlier service started."""
    since: float
    progress: JobProgress = field(default_factory=JobProgress)
    offset: int = 0
    signalled: float | None = None
    planned: float | None = None
    known: int = 0

    def exit_code(self) -> tuple[bool, int | None]:
        """Tell whether the process has ended, and its exit code if anybody knows it."""
        if self.process is not None:
            code = self.process.poll()
            return code is not None, code
        lock = self.folder.lock()
        if not lock.acquire():
            return False, None
        lock.release()
        return True, self.folder.exit_code(self.job.attempt)


class Runner:
    """Runs the queue; see the module."""

    def __init__(
        self, jobs: StoredJobs, settings: Settings, say: Callable[[str], None] = print
    ) -> None:
        """Take the jobs of a database that no other service uses."""
        self.jobs, self.settings, self._say = jobs, settings, say
        self._wake, self._quit = threading.Event(), threading.Event()
        self._draining = False
        self._dirty = True
        self._live: dict[int, Live] = {}
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self.versions: dict[int, int] = defaultdict(int)
        """Grows with each change of a job, for those who follow it."""
        self.trials: Counter[str] = Counter()
        """Steps of all jobs since the start that were made then, by outcome."""
        self.boots = 0

    # ------------------------------------------------------------------ what others call

    def start(self) -> None:
        """Look what an earlier service left, then run the queue."""
        self._recover()
        self._thread.start()

    def wake(self, job_id: int) -> None:
        """Have the runner look at a job whose row was changed."""
        self.versions[job_id] += 1
        self._dirty = True
        self._wake.set()

    def drain(self, patience_s: float) -> None:
        """Stop every job as Ctrl-C does, wait for them, and end the thread.

        Those that take longer go on by themselves; the next service adopts them.
        """
        self._draining = True
        end = time.monotonic() + patience_s
        self._wake.set()
        while self._live and time.monotonic() < end:
            time.sleep(TICK_S / 2)
        self._quit.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def progress(self, job: JobRecord) -> dict[str, Any] | None:
        """Tell how far a job came, with the time that it needs yet where that can be told."""
        live = self._live.get(job.id)
        if live is None:
            return job.progress
        shown = live.progress.as_json()
        fresh = shown["done"] - shown["known_before"]
        if live.planned is not None and fresh > 0 and shown["total"] > shown["done"]:
            pace = (time.monotonic() - live.planned) / fresh
            shown["seconds_left"] = round(pace * (shown["total"] - shown["done"]))
        return shown

    def is_well(self) -> bool:
        """Tell whether the thread runs and the database can be written."""
        return self._thread.is_alive() and not self._said

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._quit.is_set():
            self._wake.wait(TICK_S)
            self._wake.clear()
            # Taken first: what is changed from now on is looked at in the next turn.
            changed, self._dirty = self._dirty, False
            try:
                for live in list(self._live.values()):
                    self._look_after(live, changed=changed)
                if changed and not self._draining:
                    self._start_more()
                self._said = ""
            except Exception as error:  # noqa: BLE001 - the queue outlives what one job brings
                # A locked database or a full disk passes; jobs run on meanwhile.
                self._dirty = True
                if not isinstance(error, AutotuneError | OSError):
                    traceback.print_exc()
                if str(error) != self._said:
                    self._said = str(error) or type(error).__name__
                    self._say(f"the queue waits: {self._said}")
                self._quit.wait(5 * TICK_S)

    def _recover(self) -> None:
        for job in self.jobs.in_states(ALIVE):
            folder = JobFolder.of(self.settings.root, job.id)
            elapsed = (datetime.now(UTC) - (job.started_at or job.created_at)).total_seconds()
            live = Live(job, folder, None, time.monotonic() - max(0.0, elapsed))
            gone, code = (True, None) if not folder.path.is_dir() else live.exit_code()
            if gone:
                self._follow(live)
                self._finish(live, code)
            else:
                self._live[job.id] = live
                self._say(f"job {job.id} still runs; watching it again")
        for job in self.jobs.in_states({JobState.INTERRUPTED}):
            change = queue.resumed(job, resume=self.settings.resume)
            if change is not None:
                self.jobs.change(
                    job.id,
                    {JobState.INTERRUPTED},
                    state=change.state,
                    reason=change.reason,
                    stop=Stop.NO,
                    ended_at=None,
                )

    def _look_after(self, live: Live, *, changed: bool) -> None:
        gone, code = live.exit_code()  # before reading: what it said last is then in the files
        self._follow(live)
        if gone:
            self._finish(live, code)
            return
        if changed:
            live.job = self.jobs.get(live.job.id) or live.job
        if self._draining and live.job.state is JobState.RUNNING:
            self._ask_to_stop(live, Stop.DRAIN)
        self._check_limits(live)
        if live.job.state is JobState.STOPPING:
            self._signal(live)

    def _check_limits(self, live: Live) -> None:
        limit, running = live.job.max_time_s, live.job.state is JobState.RUNNING
        if running and limit is not None and time.monotonic() - live.since > limit:
            self._ask_to_stop(live, Stop.TIME)
        elif running and size_of(live.folder.log) > self.settings.most_log:
            self._ask_to_stop(live, Stop.LOG)

    def _ask_to_stop(self, live: Live, why: Stop) -> None:
        changed = self.jobs.change(
            live.job.id, {JobState.RUNNING}, state=JobState.STOPPING, stop=why
        )
        live.job = changed or live.job
        self.versions[live.job.id] += 1

    def _signal(self, live: Live) -> None:
        """Stop the process as Ctrl-C does, once; later kill what is left of its group."""
        now = time.monotonic()
        group = live.job.pid or live.folder.pid()
        if group is None:
            return
        if live.signalled is None:
            live.signalled = now
            _send(group, signal.SIGINT)
        elif now - live.signalled > KILL_AFTER_S:
            live.signalled = now
            _send(group, signal.SIGKILL)

    def _follow(self, live: Live) -> None:
        for offset, line in lines_from(live.folder.events, live.offset):
            live.offset = offset
            event = event_of(line)
            live.progress.add(event)
            if event.get("event") == "plan":
                live.planned = time.monotonic()
            elif event.get("event") == "step" and not event.get("known"):
                self.trials[str(event.get("outcome"))] += 1
                self.boots += live.progress.plan.get("unit") == "boots"
            self.versions[live.job.id] += 1

    def _finish(self, live: Live, code: int | None) -> None:
        job = self.jobs.get(live.job.id) or live.job
        change = queue.ended(job, code, live.folder.last_line())
        self.jobs.change(
            job.id,
            ALIVE,
            state=change.state,
            reason=change.reason,
            exit_code=code,
            progress=live.progress.as_json() if live.progress.plan else None,
            ended_at=datetime.now(UTC),
        )
        self._live.pop(job.id, None)
        self._dirty = True
        self.versions[job.id] += 1

    def _start_more(self) -> None:
        alive = [live.job for live in self._live.values()]
        rooms = queue.rooms(alive, self.settings.capacity)
        queued = self.jobs.next_of(rooms, queue.LIGHT, _NEXT)
        for start in queue.starts(queued, alive, self.settings.capacity):
            self._start(start)

    def _start(self, start: queue.Start) -> None:
        folder = JobFolder.of(self.settings.root, start.job.id)
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = folder.lock()
        if not lock.acquire():
            self._dirty = True  # a process of an earlier attempt is not gone yet
            return
        lock.leave("")
        try:
            job = self.jobs.change(
                start.job.id,
                {JobState.QUEUED},
                state=JobState.RUNNING,
                attempt=start.job.attempt + 1,
                gpus=",".join(start.gpus),
                started_at=datetime.now(UTC),
                ended_at=None,
                reason="",
                exit_code=None,
                pid=None,
                stop=Stop.NO,
            )
            if job is None:
                return  # cancelled meanwhile
            live = Live(job, folder, None, time.monotonic(), offset=size_of(folder.events))
            self.versions[job.id] += 1
            try:
                live.process = self._spawn(job, folder, lock.fileno())
            except (OSError, AutotuneError) as error:
                self.jobs.change(
                    job.id,
                    ALIVE,
                    state=JobState.FAILED,
                    reason=f"could not be started: {error}",
                    ended_at=datetime.now(UTC),
                )
                return
            self._live[job.id] = live
            changed = self.jobs.change(job.id, ALIVE, pid=live.process.pid)
            live.job = changed or live.job
        finally:
            lock.release()  # the process holds it from now on

    def _spawn(self, job: JobRecord, folder: JobFolder, lock: int) -> subprocess.Popen[bytes]:
        settings = self.settings
        folder.tell({"event": "attempt", "attempt": job.attempt})
        words = command_of(
            job.kind,
            parse(job.kind, job.args),
            db=settings.db,
            out=settings.root,
            events=folder.events,
        )
        environment = {n: v for n, v in os.environ.items() if not n.startswith("AUTOTUNE_TOKEN")}
        if job.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = job.gpus
        with folder.log.open("ab") as log, folder.result(job).open("wb") as result:
            return subprocess.Popen(  # noqa: S603 - checked by the request and the policy
                [
                    *settings.program,
                    *(str(lock), str(folder.exit_file(job.attempt)), *words),
                ],
                stdin=subprocess.DEVNULL,
                stdout=result,
                stderr=log,
                cwd=settings.root,
                env=environment,
                pass_fds=[lock],
                start_new_session=True,
            )


def _send(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # gone by itself; the next look notes it
        os.killpg(group, number)
