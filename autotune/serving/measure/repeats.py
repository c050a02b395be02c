"""A repeat of a load as it is stored the moment it ends: what a kill takes is the one under way.

A resumed measurement goes on with a server of its own, so its repeats may be of several boots; the
prompts of a repeat are the same in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from autotune.core import Candidate, Workload
from autotune.serving.measure.counters import DraftCounters
from autotune.serving.measure.metrics import ServerMetrics
from autotune.serving.measure.timing import LoadResult, RequestRecord

_MICRO = 1e6


@dataclass(frozen=True)
class Repeat:
    """A load and what the server counted meanwhile.

    Attributes:
        result: its requests.
        preemptions: requests that had to give up their KV cache; None where nothing was counted.
        drafts: None without speculation, or where nothing was counted.
    """

    result: LoadResult
    preemptions: int | None = None
    drafts: DraftCounters | None = None

    @classmethod
    def of(cls, result: LoadResult, counted: ServerMetrics | None) -> Repeat:
        """From a load and the difference of two readings around it."""
        if counted is None:
            return cls(result)
        return cls(result, counted.preemptions, counted.drafts)

    def as_json(self) -> dict[str, Any]:
        """Times in µs; texts are left out, which no number needs."""
        drafts = self.drafts
        return {
            "concurrency": self.result.concurrency,
            "duration_s": self.result.duration_s,
            "client_cpu_s": self.result.client_cpu_s,
            "tok_s": self.result.summary().tok_s,
            "requests": [_request_json(record) for record in self.result.records],
            "preemptions": self.preemptions,
            "drafts": drafts
            and {
                "drafts": drafts.drafts,
                "draft_tokens": drafts.draft_tokens,
                "accepted_tokens": drafts.accepted_tokens,
                "accepted_by_position": list(drafts.accepted_by_position),
            },
        }

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Repeat:
        """The inverse of :meth:`as_json`, times rounded to µs.

        Raises:
            LookupError, TypeError, ValueError: not what it gives.
        """
        drafts = value["drafts"]
        return cls(
            LoadResult(
                tuple(_request_of(i, one) for i, one in enumerate(value["requests"])),
                value["concurrency"],
                value["duration_s"],
                value["client_cpu_s"],
            ),
            value["preemptions"],
            drafts
            and DraftCounters(
                drafts["drafts"],
                drafts["draft_tokens"],
                drafts["accepted_tokens"],
                tuple(drafts["accepted_by_position"]),
            ),
        )


def _request_json(record: RequestRecord) -> dict[str, Any]:
    return {
        "start": round(record.start_s * _MICRO),
        "ttft": round(record.ttft_s * _MICRO),
        "latency": round(record.latency_s * _MICRO),
        "itl": [round(value * _MICRO) for value in record.itl_s],
        "prompt": record.prompt_tokens,
        "output": record.output_tokens,
    }


def _request_of(index: int, value: Mapping[str, Any]) -> RequestRecord:
    return RequestRecord(
        index=index,
        start_s=value["start"] / _MICRO,
        ttft_s=value["ttft"] / _MICRO,
        itl_s=tuple(one / _MICRO for one in value["itl"]),
        latency_s=value["latency"] / _MICRO,
        prompt_tokens=value["prompt"],
        output_tokens=value["output"],
    )


def part_name(concurrency: int, number: int) -> str:
    """The name under which a repeat is stored; ``number`` counts from 0."""
    return f"concurrency {concurrency} repeat {number}"


class PartLog(Protocol):
    """The part of the store that keeps repeats, such as ``autotune.store.run_log.StoredLog``."""

    def load_parts(self, workload: Workload, candidate: Candidate) -> dict[str, dict[str, Any]]:
        """What a run that was cut off had finished of a measurement, by name."""

    def append_part(
        self, workload: Workload, candidate: Candidate, name: str, value: Mapping[str, Any]
    ) -> None:
        """Store a finished part; durable on return."""


class Journal:
    """The repeats of one measurement: what is stored already, and what is added."""

    def __init__(
        self,
        log: PartLog | None = None,
        workload: Workload | None = None,
        candidate: Candidate | None = None,
    ) -> None:
        """Read what is stored; without a log nothing is, and nothing will be."""
        self._log, self._workload, self._candidate = log, workload, candidate
        self._known: dict[str, dict[str, Any]] = {}
        if log is not None and workload is not None and candidate is not None:
            self._known = log.load_parts(workload, candidate)
        self.reused = 0
        """Repeats that were read back rather than measured."""

    def get(self, concurrency: int, number: int) -> Repeat | None:
        """A repeat that an earlier run finished; None if it has to be measured."""
        value = self._known.get(part_name(concurrency, number))
        if value is None:
            return None
        self.reused += 1
        return Repeat.of_json(value)

    def add(self, concurrency: int, number: int, repeat: Repeat) -> None:
        """Store a repeat that was just measured."""
        if self._log is not None and self._workload is not None and self._candidate is not None:
            name = part_name(concurrency, number)
            self._log.append_part(self._workload, self._candidate, name, repeat.as_json())
