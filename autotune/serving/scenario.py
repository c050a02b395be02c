"""What is tuned for: a target, its drafter, and the load that users put on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from autotune.core import digest
from autotune.decide.stats import geometric_mean
from autotune.serving.pair.methods import NO_DRAFTER

STATIC_OBJECTIVES = ("geomean", "single", "aggregate")
"""``geomean`` over all concurrencies; ``single``: a stream's own rate at the lowest one;
``aggregate``: all streams together at the highest one."""
OBJECTIVES = (*STATIC_OBJECTIVES, "pareto")
"""``pareto`` looks for the front of single against aggregate; a single setting out of it is chosen
by ``geomean``."""


@dataclass(frozen=True)
class Beside:
    """Servers are up at once on one device, and the loads take turns.

    Attributes:
        rivals: a digest of their settings: figures are compared within one such group.
        rounds: in each of which every server is loaded at every concurrency.
        kv_bytes: of KV cache that each server is given.
    """

    rivals: str
    rounds: int
    kv_bytes: int


@dataclass(frozen=True)
class Slice:
    """One part of a load, which is sent by itself: requests of one kind and one length.

    Attributes:
        kind: of its prompts; empty where nothing tells them apart.
        context: tokens of a request, its output included; None leaves prompts as they are.
    """

    kind: str = ""
    context: int | None = None

    @property
    def name(self) -> str:
        """Such as ``rewriting``, ``16k tokens`` or ``chat 16k tokens``; empty for a whole load."""
        length = [] if self.context is None else [f"{tokens_of(self.context)} tokens"]
        return " ".join([self.kind] * bool(self.kind) + length)


def tokens_of(count: int) -> str:
    """Such as ``16k`` for 16000 and ``16K`` for 16384, as ``--context`` takes it."""
    for unit, size in (("k", 1000), ("K", 1024)):
        if not count % size:
            return f"{count // size}{unit}"
    return str(count)


@dataclass(frozen=True)
class SpecScenario:
    """A serving load; a :class:`autotune.core.Workload`.

    Attributes:
        target: the model served, a folder or a hub id.
        drafter: a folder, a hub id or a method without a model.
        prompts: the name of the set or the file, for people.
        prompts_key: the identity of its content.
        concurrency: requests in flight at once, ascending.
        max_tokens: output tokens per request at most.
        ignore_eos: whether every request generates ``max_tokens`` in any case.
        chat: whether the server applies its chat template.
        repeats: timed loads at each concurrency.
        waves: requests of a timed load, as a multiple of its concurrency.
        objective: one of :data:`OBJECTIVES`.
        round: 0 for the search; rounds of confirmation count from 1.
        tasks: of lm-eval, which the first round of the confirmation evaluates.
        slo: limits in ms on 99th percentiles, by name; see ``measure/stopping.py``.
        dial: whether one server serves every gamma, which the dial turns (``dial/``); such values
            are compared among themselves only.
        beside: of a confirmation whose servers are up at once; None where they are not.
        kinds: of the prompts, where there are several (:func:`prompts.kinds_of`).
        context: tokens of a request, its output included, ascending, a load for each; empty leaves
            prompts as they are.
        control: the place on which the baseline is booted to tell how far places of one kind
            differ (``cluster/control.py``); empty otherwise.
    """

    target: str
    drafter: str
    prompts: str
    prompts_key: str
    concurrency: tuple[int, ...]
    max_tokens: int
    ignore_eos: bool
    chat: bool
    repeats: int
    waves: int
    objective: str
    round: int = 0
    slo: tuple[tuple[str, float], ...] = ()
    tasks: tuple[str, ...] = ()
    dial: bool = False
    beside: Beside | None = None
    control: str = ""
    kinds: tuple[str, ...] = ()
    context: tuple[int, ...] = ()

    @cached_property
    def key(self) -> str:
        """Identity used in the database."""
        values = self.as_json()
        del values["prompts"]
        return digest(values)

    @property
    def drafting(self) -> str:
        """The drafter in words."""
        return "no drafter" if self.drafter == NO_DRAFTER else self.drafter

    @property
    def label(self) -> str:
        """Such as ``c=1,4,8`` or ``c=1,4,8 round 2``."""
        levels = ",".join(map(str, self.concurrency))
        how = " dial" if self.dial else f" control {self.control}" if self.control else ""
        if self.beside is not None:
            return f"c={levels} side by side"
        return f"c={levels} round {self.round}" if self.round else f"c={levels}{how}"

    def as_json(self) -> dict[str, Any]:
        """Everything that defines the load, as JSON values; limits only where there are any."""
        values = asdict(self) | {"slo": dict(self.slo)}
        values |= {name: list(values[name]) for name in ("concurrency", "kinds", "context")}
        if not self.slo:
            del values["slo"]
        if not self.evaluates:
            del values["tasks"]
        for name in ("dial", "beside", "control", "kinds", "context"):
            if not values[name]:
                del values[name]
        return values

    @property
    def evaluates(self) -> bool:
        """Whether tasks are evaluated on the server, too."""
        return bool(self.tasks) and self.round == 1

    def in_round(self, number: int) -> SpecScenario:
        """The same load in round ``number`` of the confirmation, each server of one gamma."""
        return replace(self, round=number, dial=False, beside=None, control="")

    def side_by_side(self, beside: Beside) -> SpecScenario:
        """The same load in a confirmation whose servers, of one gamma each, are up at once."""
        return replace(self, round=1, dial=False, beside=beside)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """What a repeat consists of: every kind at every length."""
        kinds, lengths = self.kinds or ("",), self.context or (None,)
        return tuple(Slice(kind, length) for length in lengths for kind in kinds)

    @property
    def requests(self) -> int:
        """Count the timed requests of a boot."""
        return self.repeats * self.waves * sum(self.concurrency) * len(self.slices)

    @property
    def is_mixed(self) -> bool:
        """Whether its figures are those of several kinds or lengths together."""
        return len(self.slices) > 1

    @property
    def loads(self) -> int:
        """How often each concurrency is loaded."""
        return self.repeats if self.beside is None else self.beside.rounds

    @property
    def measure(self) -> str:
        """The objective by which one setting is compared with another."""
        return "geomean" if self.objective == "pareto" else self.objective

    @property
    def deciding(self) -> tuple[int, ...]:
        """The concurrencies that the objective looks at."""
        ends = {"single": self.concurrency[:1], "aggregate": self.concurrency[-1:]}
        return ends.get(self.measure, self.concurrency)

    def microseconds(self, tok_s: Mapping[int, float], objective: str | None = None) -> float:
        """What is minimised: µs per output token by an objective.

        Args:
            tok_s: aggregate output tokens per second at every concurrency.
            objective: one of :data:`STATIC_OBJECTIVES`; the scenario's own if None.
        """
        chosen = objective or self.measure
        if chosen == "single":
            lowest = self.concurrency[0]
            return 1e6 * lowest / tok_s[lowest]
        if chosen == "aggregate":
            return 1e6 / tok_s[self.concurrency[-1]]
        return 1e6 / geometric_mean([tok_s[c] for c in self.concurrency])
