"""A repeat of a load is stored the moment it ends: what a kill takes is the one under way.

A resumed measurement goes on with a server of its own, so its repeats may be of several boots; the
prompts of a repeat are the same in any case.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autotune.core import Job, Part
from autotune.machine.clocks import Reading
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
        clocks: what was read of the GPU meanwhile.
    """

    result: LoadResult
    preemptions: int | None = None
    drafts: DraftCounters | None = None
    clocks: tuple[Reading, ...] = ()

    @classmethod
    def of(
        cls, result: LoadResult, counted: ServerMetrics | None, clocks: Sequence[Reading] = ()
    ) -> Repeat:
        """From a load, the difference of two readings around it, and the GPU's clocks in it."""
        if counted is None:
            return cls(result, clocks=tuple(clocks))
        return cls(result, counted.preemptions, counted.drafts, tuple(clocks))

    @classmethod
    def together(cls, parts: Sequence[Repeat]) -> Repeat:
        """One load of several, which followed each other at one concurrency."""
        if len(parts) == 1:
            return parts[0]
        result = LoadResult(
            tuple(record for part in parts for record in part.result.records),
            parts[0].result.concurrency,
            sum(part.result.duration_s for part in parts),
            sum(part.result.client_cpu_s for part in parts),
        )
        preempted = [part.preemptions for part in parts]
        return cls(
            result,
            None if None in preempted else sum(n for n in preempted if n is not None),
            drafts_of(parts),
            tuple(reading for part in parts for reading in part.clocks),
        )

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
            "clocks": [dict(one) for one in self.clocks],
            "drafts": drafts
            and asdict(drafts) | {"accepted_by_position": list(drafts.accepted_by_position)},
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
                tuple(map(_request_of, value["requests"])),
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
            tuple(value.get("clocks", ())),
        )


def drafts_of(repeats: Sequence[Repeat]) -> DraftCounters | None:
    """Of all repeats; None where one of them counted none."""
    counted = [repeat.drafts for repeat in repeats]
    known = [one for one in counted if one is not None]
    whole = bool(known) and len(known) == len(counted)
    return functools.reduce(operator.add, known) if whole else None


def _request_json(record: RequestRecord) -> dict[str, Any]:
    return {
        "start": round(record.start_s * _MICRO),
        "ttft": round(record.ttft_s * _MICRO),
        "latency": round(record.latency_s * _MICRO),
        "itl": [round(value * _MICRO) for value in record.itl_s],
        "prompt": record.prompt_tokens,
        "output": record.output_tokens,
    }


def _request_of(value: Mapping[str, Any]) -> RequestRecord:
    return RequestRecord(
        start_s=value["start"] / _MICRO,
        ttft_s=value["ttft"] / _MICRO,
        itl_s=tuple(one / _MICRO for one in value["itl"]),
        latency_s=value["latency"] / _MICRO,
        prompt_tokens=value["prompt"],
        output_tokens=value["output"],
    )


def part_name(concurrency: int, number: int, share: str = "") -> str:
    """The name under which a repeat is stored; ``number`` counts from 0.

    ``share`` names the slice of the load; empty where it has one alone.
    """
    return f"concurrency {concurrency} repeat {number}" + (f" of {share}" if share else "")


def kept(job: Job, concurrency: int, number: int, share: str = "") -> Repeat | None:
    """Give a repeat that an earlier run finished; None if it has to be measured."""
    value = job.parts.get(part_name(concurrency, number, share))
    return None if value is None else Repeat.of_json(value)


def part(job: Job, concurrency: int, number: int, repeat: Repeat, share: str = "") -> Part:
    """Make a repeat that was just measured ready to be stored."""
    name = part_name(concurrency, number, share)
    return Part(job.candidate, job.workload, name, repeat.as_json())
