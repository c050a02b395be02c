"""A serving measurer without processes, HTTP or waiting: :mod:`tests.serving.formula` in memory.

Warm-ups, repeats, rules and outcomes are the real ones; only the server and the wire to it are not.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotune.machine.guard import MemoryGuard
from autotune.serving.decide.side_by_side import room_beside_the_dial
from autotune.serving.measure.client import Load
from autotune.serving.measure.load import LoadOptions
from autotune.serving.measure.measurer import ServingMeasurer
from autotune.serving.measure.metrics import Peak, ServerMetrics, parse_metrics
from autotune.serving.measure.timing import LoadResult, RequestRecord
from autotune.serving.measure.wire import Wire
from autotune.serving.plan import Plan
from autotune.serving.server.failures import ServerFailure, classify
from autotune.serving.server.server import Server, ServerFailedError, ServeSettings, serve_args
from autotune.serving.server.web import Reply
from tests.serving.formula import EndError, Formula, RefusalError, place_of, prompt_tokens

BOOT_S = 0.25
PROMPT_IDS = (7, 7, 7)
_CLOSED = "the connection was closed"


class _Handle:
    """A server that is in this process."""

    url = "formula:"
    headers: Mapping[str, str] = {}

    def __init__(self, log: Path) -> None:
        self.log = log
        self.model: str | None = None
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def is_ours(self) -> bool:
        return True

    def memory_bytes(self) -> int | None:
        return None

    def kill(self) -> None:
        self.code = -9

    def stop(self) -> None:
        self.code = 0 if self.code is None else self.code


class _Server(Server):
    """Tells how it ended without being asked over HTTP."""

    def __init__(self, handle: _Handle, formula: Formula) -> None:
        super().__init__(handle, formula.model, formula.context, BOOT_S)
        self.handle, self.formula = handle, formula

    def memory_bytes(self) -> int:
        return self.formula.memory()

    def failure(self, *, stalled: bool = False, timeout_s: float = 10.0) -> ServerFailure | None:
        code = self.handle.poll()
        return None if code is None else classify(self.log, code, served=True)


class _Answer:
    """One request under way, in seconds of the load."""

    def __init__(self, formula: Formula, load: Load, index: int, start: float) -> None:
        self.index, self.start, self.formula = index, start, formula
        self.steps = formula.answer(load.payload(index))
        self.times: list[float] = []
        self.text = ""

    def until_next_wait(self, now: float) -> float | None:
        """Take in the text that has come by ``now``; the seconds of the next step, None at the end.

        Raises:
            EndError, RefusalError: as the formula.
        """
        for step in self.steps:
            if isinstance(step, float):
                return step
            self.times.append(now)
            self.text += step
        return None

    def record(self, load: Load, error: str = "") -> RequestRecord:
        if error:
            return RequestRecord(self.start, error=error)
        asks = load.extra.get("return_token_ids")
        return RequestRecord(
            start_s=self.start,
            ttft_s=self.times[0] - self.start,
            itl_s=tuple(later - earlier for earlier, later in itertools.pairwise(self.times)),
            latency_s=self.times[-1] - self.start,
            prompt_tokens=prompt_tokens(load.payload(self.index)),
            output_tokens=load.max_tokens,
            text=self.text,
            tokens=tuple(self.formula.tokens(load.max_tokens)) if asks else (),
            prompt_ids=PROMPT_IDS if asks else (),
        )


class _Lanes:
    """Runs a load in virtual time: whose step ends first goes on first."""

    def __init__(self, handle: _Handle, formula: Formula, load: Load) -> None:
        self.handle, self.formula, self.asked = handle, formula, load
        self.records: dict[int, RequestRecord] = {}
        self.waiting: list[tuple[float, int, _Answer]] = []
        self.now = 0.0

    def run(self) -> LoadResult:
        sent = 0
        while True:
            while sent < self.asked.requests and self.has_room():
                self.go_on(_Answer(self.formula, self.asked, sent, self.now))
                sent += 1
            if not self.waiting or self.handle.code is not None:
                break
            self.now, _, answer = heapq.heappop(self.waiting)
            self.go_on(answer)
        for _, index, answer in self.waiting:  # of a server that died
            self.records[index] = answer.record(self.asked, _CLOSED)
        records = tuple(self.records[index] for index in sorted(self.records))
        return LoadResult(records, self.asked.concurrency, self.now, 0.0)

    def has_room(self) -> bool:
        failed = any(record.error for record in self.records.values())
        return len(self.waiting) < self.asked.concurrency and not failed

    def go_on(self, answer: _Answer) -> None:
        error = ""
        try:
            wait = answer.until_next_wait(self.now)
            if wait is not None:
                heapq.heappush(self.waiting, (self.now + wait, answer.index, answer))
                return
        except EndError as end:
            self.handle.code, error = end.status, _CLOSED
        except RefusalError:
            error = "HTTP 400: no"
        self.records[answer.index] = answer.record(self.asked, error)


class FormulaWire(Wire):
    """Answers with a formula."""

    def __init__(self, server: _Server, formula: Formula) -> None:
        super().__init__(server)
        self.handle, self.formula = server.handle, formula

    def load(self, load: Load) -> LoadResult:
        return _Lanes(self.handle, self.formula, load).run()

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> Reply:
        if self.formula.given.get("unscored"):
            return Reply(400, "no prompt_logprobs here")
        ids, first = body["prompt"], len(PROMPT_IDS)
        places = [place_of(token, at - first) for at, token in enumerate(ids)]
        return Reply(200, json.dumps({"choices": [{"prompt_logprobs": places}]}))

    def watched(self, load: Load) -> tuple[LoadResult, Peak]:
        return self.load(load), Peak()

    def metrics(self) -> ServerMetrics | None:
        return parse_metrics(self.formula.counters.text())


def wire_to(formula: Formula, log: Path) -> FormulaWire:
    """A wire to a formula that nobody has to boot."""
    return FormulaWire(_Server(_Handle(log), formula), formula)


class FormulaMeasurer(ServingMeasurer):
    """Boots formulas; what they are like stands in their environment, as for ``fake_serving``."""

    @contextmanager
    def _launched(
        self, settings: ServeSettings, log: Path, guard: MemoryGuard
    ) -> Iterator[Callable[[], Wire]]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as said:

            def say(line: str) -> None:
                said.write(f"{line}\n")
                said.flush()

            given = json.loads(settings.env.get("FAKE_SERVING", "{}"))
            args = ["serve", *serve_args(settings, "127.0.0.1", 1)]
            formula, handle = Formula(given, args, settings.env, say), _Handle(log)

            def ready() -> Wire:
                try:
                    formula.boot()
                except EndError as end:
                    raise ServerFailedError(classify(log, end.status, served=False)) from None
                return FormulaWire(_Server(handle, formula), formula)

            try:
                yield ready
            finally:
                handle.stop()


def in_memory(plan: Plan, logs: Path) -> FormulaMeasurer:
    """As :func:`autotune.serving.job.local_measurer`, without processes."""
    return FormulaMeasurer(
        plan.launcher,
        plan.recipe.settings,
        LoadOptions(plan.prompts, plan.request_timeout_s, plan.check_tokens, clocks=True),
        logs,
        basis=plan.basis,
        tasks=plan.tasks,
        ahead=room_beside_the_dial(plan),
    )
