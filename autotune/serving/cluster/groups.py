"""Placement groups of a Ray cluster as places: this module alone of the servers' half knows Ray.

A group holds its GPUs from the first boot on it to the end of the command, so that rivals meet on
the same ones. It, and the actors in it, end with the command that made them, by ``kill -9`` too;
the supervisor of a server then sees its input close, and ends the server.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from autotune.cluster.crew import Seat
from autotune.core import AutotuneError, Job, Measurement, MissingEnvironmentError, Outcome, Part
from autotune.core import Group as Rivals
from autotune.machine.devices import detect_gpus
from autotune.serving.cluster.fleet import Event, PlaceLostError
from autotune.serving.cluster.look import NodeFacts, look_here
from autotune.serving.cluster.node import NodeMeasurer, Watch
from autotune.serving.measure.measurer import ServingMeasurer

_ANSWER_S = 30.0
"""For an actor that is asked for what it has at hand."""
_START_S = 120.0
"""For an actor's process: it imports this package, on a node that may be busy."""
_LOG_S = 1.0
_SPARED = {"RAY_kill_child_processes_on_worker_exit": "0"}
"""Ray would kill the supervisor with the actor, and the supervisor could end no server any more."""


@dataclass(frozen=True)
class Wanted:
    """What a group is asked for.

    Attributes:
        gpus: of one server; 0 is a server on the CPUs of a node.
        cpus: of the node that runs the server.
        per_node: the most GPUs that a node of the cluster has.
        unified: whether GPUs allocate from the host's memory.
    """

    gpus: int
    cpus: float
    per_node: int
    unified: bool

    @property
    def bundles(self) -> list[dict[str, float]]:
        """One for each GPU, as vLLM wants them; the first has room for the server itself."""
        if not self.gpus:
            return [{"CPU": self.cpus}]
        return [{"CPU": 1.0, "GPU": 1.0} for _ in range(self.gpus)]

    @property
    def strategy(self) -> str:
        """On one machine where it has as many; else machine by machine, as few as can be."""
        return "STRICT_PACK" if self.gpus <= max(1, self.per_node) else "PACK"


@ray.remote
def _seat() -> Seat:
    context = ray.get_runtime_context()
    ids = context.get_accelerator_ids().get("GPU", [])
    seat = Seat(platform.node(), context.get_node_id())
    if not ids:
        return seat
    shown = next((g for g in detect_gpus() if ids[0] in {str(g.index), g.uuid}), None)
    if shown is None:
        return replace(seat, gpu=int(ids[0]) if ids[0].isdecimal() else 0)
    return replace(seat, gpu=shown.index, uuid=shown.uuid)


class Group:
    """A placement group, its measurer and its watches; a :class:`fleet.Place`."""

    def __init__(
        self,
        group: PlacementGroup,
        wanted: Wanted,
        measurer: ServingMeasurer,
        logs: Path,
        secrets: Mapping[str, str],
        folder: Path | None,
    ) -> None:
        """Start the actors in a group that is ready.

        Raises:
            PlaceLostError: a node of it is gone again.
            MissingEnvironmentError: somebody else measures on its GPUs.
        """
        self._group, self._wanted, self._logs = group, wanted, logs
        self._measurer: Any = None
        self._watches: list[Any] = []
        self._stream: Any = None
        self._said, self._asked_log = None, 0.0
        self._lost: PlaceLostError | None = None
        try:
            self.seats = self._seated()
            self._start(measurer, secrets, folder)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """Its GPUs and their hosts."""
        return " + ".join(seat.name for seat in self.seats)

    def _within(self, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self._group, index)

    def _seated(self) -> list[Seat]:
        """Where the bundles are, the server's first."""
        gpus = 1 if self._wanted.gpus else 0
        asked = [
            _seat.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=self._within(i)).remote()
            for i in range(len(self._wanted.bundles))
        ]
        found: list[Seat] = _answer(asked, _START_S)
        return found

    def _start(
        self, measurer: ServingMeasurer, secrets: Mapping[str, str], folder: Path | None
    ) -> None:
        home, several = self.seats[0].node, len(self.seats) > 1
        order = sorted(range(len(self.seats)), key=lambda i: (self.seats[i].node != home, i))
        address = ray.get_runtime_context().gcs_address
        bound = (self._group.id.hex(), address, order) if several else None
        self._measurer = (
            ray.remote(NodeMeasurer)
            .options(
                num_cpus=1 if self._wanted.gpus else self._wanted.cpus,
                num_gpus=0 if several or not self._wanted.gpus else 1,
                max_concurrency=4,  # its log is read while it measures
                scheduling_strategy=self._within(0),
                runtime_env={"env_vars": _SPARED},
            )
            .remote(measurer, self.seats, dict(secrets), bound, folder)
        )
        nodes = {seat.node: i for i, seat in reversed(list(enumerate(self.seats)))}
        for node, index in nodes.items() if several else ():
            mine = [s for s in self.seats if s.node == node] if node != home else []
            self._watches.append(
                ray.remote(Watch)
                .options(num_cpus=0, max_concurrency=2, scheduling_strategy=self._within(index))
                .remote(mine, unified=self._wanted.unified)
            )
        _answer([a.hold.remote() for a in (self._measurer, *self._watches)], _START_S)

    def begin(self, jobs: Sequence[Job]) -> None:
        """Have the jobs of one server measured."""
        measure = self._measurer.measure.options(num_returns="streaming")
        self._stream = measure.remote(list(jobs))

    def begin_group(self, group: Rivals, *, check: bool) -> None:
        """Have rivals measured side by side."""
        compare = self._measurer.compare.options(num_returns="streaming")
        self._stream = compare.remote(group, check=check)

    def events(self) -> Sequence[Event]:
        """Give what has come since; what came before a loss is given first."""
        if self._lost is not None:
            raise self._lost
        found: list[Event] = []
        try:
            while (event := self._next()) is not None:
                if isinstance(event, dict):
                    event = {c: self._checked(one) for c, one in event.items()}
                found.append(self._checked(event) if isinstance(event, Measurement) else event)
            self._take_log(wait=not all(isinstance(event, Part) for event in found))
        except PlaceLostError as error:
            if not found:
                raise
            self._lost = error
        return found

    def _next(self) -> Event | None:
        if self._stream is None:
            return None
        ready, _ = ray.wait([self._stream], timeout=0)
        if not ready:
            return None
        try:
            reference = next(self._stream)
        except StopIteration:
            self._stream = None
            return None
        event: Event = _answer(reference, _ANSWER_S)
        return event

    def _checked(self, found: Measurement) -> Measurement:
        """Hold nothing against a setting whose workers ended with their node, or for its memory.

        Raises:
            PlaceLostError: a node of the group is gone.
        """
        local = Path(found.details.get("log") or "").name
        details = {**found.details, **({"log": str(self._logs / local)} if local else {})}
        found = replace(found, details=details)
        if found.outcome is Outcome.OK or not self._watches:
            return found
        asked = [watch.take_fall.remote() for watch in self._watches]
        falls = [fall for fall in _answer(asked, _ANSWER_S) if fall]
        if not falls:
            return found
        return replace(found, outcome=Outcome.HOST_MEMORY, value=None, message=falls[0])

    def _take_log(self, *, wait: bool) -> None:
        """Write what the servers have written; at the end of a measurement, all of it."""
        while True:
            if self._said is None and (wait or time.monotonic() - self._asked_log >= _LOG_S):
                self._said, self._asked_log = self._measurer.log_news.remote(), time.monotonic()
            if self._said is None:
                return
            if not wait and not ray.wait([self._said], timeout=0)[0]:
                return
            news, self._said = _answer(self._said, _ANSWER_S), None
            for name, offset, chunk in news:
                _write(self._logs / Path(name).name, offset, chunk)
            if not wait or not news:
                return

    def close(self) -> None:
        """End the actors and give the GPUs back."""
        actors = [actor for actor in (self._measurer, *self._watches) if actor is not None]
        with contextlib.suppress(RayError, AutotuneError, PlaceLostError):
            while self._next() is not None:  # the end of the last stream, which nobody asked for
                pass
        with contextlib.suppress(RayError):  # the server first, while its locks are held
            ray.get([a.close.remote() for a in actors if self._stream is None], timeout=_ANSWER_S)
        for actor in actors:
            with contextlib.suppress(RayError):
                ray.kill(actor)
        with contextlib.suppress(RayError):
            remove_placement_group(self._group)


def look(models: Sequence[str], program: tuple[str, ...]) -> list[NodeFacts]:
    """Ask every node of the cluster that we are connected to what it has.

    Args:
        models: folders that are to be served.
        program: what stands for vLLM; empty is the Python's of the node.

    Raises:
        MissingEnvironmentError: a node does not answer, or cannot; one line for each.
    """
    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    asked = {
        node["NodeID"]: ray.remote(look_here)
        .options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False)
        )
        .remote(
            node["NodeID"],
            int(free.get(node["NodeID"], {}).get("GPU", 0)),
            node["Resources"].get("CPU", 0.0),
            models,
            program,
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }
    found, lines = list[NodeFacts](), list[str]()
    for node, reference in asked.items():
        try:
            found.append(_answer(reference, _START_S))
        except (PlaceLostError, RayTaskError, AutotuneError) as error:
            cause = getattr(error, "cause", error)
            lines.append(f"--ray: node {node[:8]} cannot be looked at: {cause}")
    if lines:
        raise MissingEnvironmentError("\n".join(lines))
    return found


def opener(
    wanted: Wanted,
    measurer: ServingMeasurer,
    logs: Path,
    secrets: Mapping[str, str],
    folder: Path | None = None,
) -> Callable[[float], Group | None]:
    """Make what opens a group when one is wanted, or gives None where no GPU comes free in time.

    Args:
        wanted: what it is asked for.
        measurer: of the plan.
        logs: the folder of this machine for what servers write.
        secrets: variables that the plan's flags refer to.
        folder: to which paths of the plan are relative; None where none is.
    """
    logs.mkdir(parents=True, exist_ok=True)

    def open_one(within_s: float) -> Group | None:
        end = time.monotonic() + within_s
        while True:
            group = placement_group(wanted.bundles, strategy=wanted.strategy)
            if not group.wait(max(1.0, end - time.monotonic())):
                remove_placement_group(group)
                return None
            try:
                return Group(group, wanted, measurer, logs, secrets, folder)
            except PlaceLostError:
                if time.monotonic() >= end:
                    raise

    return open_one


def _answer(asked: Any, within_s: float) -> Any:
    """Get what was asked for.

    Raises:
        PlaceLostError: who was asked is gone, or does not answer.
        AutotuneError: what it raised there.
    """
    try:
        return ray.get(asked, timeout=within_s)
    except RayTaskError as error:
        if isinstance(error.cause, AutotuneError):
            raise error.cause from None
        raise
    except RayActorError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        why = [line for line in lines if line.startswith("The actor is dead")]
        raise PlaceLostError((why or lines or [type(error).__name__])[0]) from None
    except RayError as error:
        raise PlaceLostError(
            str(error).strip().partition("\n")[0] or type(error).__name__
        ) from None


def _write(path: Path, offset: int, chunk: bytes) -> None:
    with path.open("r+b" if offset and path.exists() else "wb") as file:
        file.seek(offset)
        file.write(chunk)
