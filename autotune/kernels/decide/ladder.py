"""What the nearest-key look-up can cost between the keys of a file.

vLLM takes the key nearest to M, never interpolates and never falls back to its defaults once a file
exists. The times come from a recorded landscape, or from the cost model and are then PREDICTED.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autotune.core import Candidate
from autotune.kernels.check.verify import Level, Verified
from autotune.kernels.config_file import FIELDS, look_up
from autotune.kernels.decide.confirm import LEAST_LOSS, midpoints
from autotune.kernels.moe.constraints import CONSTRAINTS
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.predict.cost_model import predict
from autotune.kernels.predict.measurer import estimated_resources, tile_of
from autotune.kernels.request import STANDARD_LADDER
from autotune.machine.devices import Device
from autotune.measure.replay import Landscape

_LEGAL = ("powers_of_two", "launchable", "block_k_deep_enough", "fits_shared_memory")
Clock = Callable[[int, Candidate], float | None]
"""The time of a row at M in µs, where it is known."""
WIDEST = 2.0
"""The greatest step of the standard ladder from 2 on: a wider one is a gap."""


@dataclass(frozen=True)
class Loss:
    """What the look-up costs at ``m``, which lies between keys: a fraction of the best known time.

    ``against`` says what would be faster there: another row of the file, or vLLM's default.
    """

    m: int
    key: int
    share: float
    against: str


def gaps(keys: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring keys that lie more than a factor of two apart."""
    return [(a, b) for a, b in itertools.pairwise(sorted(keys)) if b > WIDEST * a and b - a > 2]


def asked(keys: Sequence[int]) -> list[int]:
    """Where the look-up is judged: about where it changes its mind, and at the standard sizes."""
    return sorted({*midpoints(keys), *(m for m in STANDARD_LADDER if m not in set(keys))})


def losses(
    rows: Mapping[int, Candidate], defaults: Mapping[int, Candidate], clock: Clock
) -> list[Loss]:
    """Where another row that is at hand would be faster, the worst first.

    Args:
        rows: of the file, in its order.
        defaults: vLLM's own at the batch sizes of :func:`asked`, as far as they are known.
        clock: times.
    """
    found = []
    for m in asked(list(rows)):
        key = look_up({key: key for key in rows}, m)
        used = clock(m, rows[key])
        others = {f"the row of key {k}": clock(m, row) for k, row in _near(rows, m).items()}
        if m in defaults:
            others["vLLM's default"] = clock(m, defaults[m])
        known = {name: us for name, us in others.items() if us is not None}
        if used is None or not known:
            continue
        best = min(known, key=known.__getitem__)
        if used > known[best]:
            found.append(Loss(m, key, used / known[best] - 1, best))
    return sorted(found, key=lambda loss: -loss.share)


def _near(rows: Mapping[int, Candidate], m: int) -> dict[int, Candidate]:
    """The rows of the two keys around M."""
    below, above = [k for k in rows if k <= m], [k for k in rows if k > m]
    near = ([max(below)] if below else []) + ([min(above)] if above else [])
    return {key: rows[key] for key in near}


def predicted(shape: MoeShape, device: Device) -> Clock:
    """The cost model, with resources estimated before compiling; no time for an illegal row."""

    def clock(m: int, row: Candidate) -> float | None:
        if set(row.params) != set(FIELDS):
            return None
        if any(CONSTRAINTS[name](row.ints, shape, device) for name in _LEGAL):
            return None
        resources = estimated_resources(row, shape, device)
        return predict(
            MoeWorkload(shape, m), tile_of(row, shape), (resources, resources), device
        ).us

    return clock


def recorded(landscape: Landscape) -> Clock:
    """A recorded landscape; what it does not hold is not known."""

    def clock(m: int, row: Candidate) -> float | None:
        found = landscape.table.get((f"M={m}", row))
        return None if found is None else found.value

    return clock


def judge(
    done: Verified, defaults: Mapping[int, Candidate], clock: Clock | None, basis: str
) -> None:
    """Say of a file where it has no keys, and what the look-up costs there.

    Args:
        done: a file with rows.
        defaults: vLLM's own, as far as they are known.
        clock: times; None where nothing is known of the device.
        basis: what the times are, such as ``PREDICTED``.
    """
    keys = sorted(done.rows)
    found = [] if clock is None else losses(done.rows, defaults, clock)
    holes = gaps(keys)
    if keys[-1] < STANDARD_LADDER[-1]:
        holes.append((keys[-1], 0))
    within: set[int] = set()
    for low, high in holes:
        inside = [loss for loss in found if low < loss.m and (loss.m < high or not high)]
        within |= {loss.m for loss in inside}
        where = f"no key between {low} and {high}" if high else f"no key above {low}"
        level: Level = "note"
        cost = "what the look-up costs there is not known"
        if clock is not None:
            cost = f"{basis} to cost nothing there"
        if inside:
            level = "warning" if inside[0].share >= LEAST_LOSS else "note"
            cost = _cost(inside[0], basis)
        done.say(level, "gap", f"{where}; {cost}", [low, high] if high else [low])
    rest = [loss for loss in found if loss.m not in within and loss.share >= LEAST_LOSS]
    if rest:
        done.say("note", "between", f"beside its keys, the look-up is {_cost(rest[0], basis)}")


def _cost(loss: Loss, basis: str) -> str:
    return (
        f"{basis} to cost up to {loss.share:.1%}, at M={loss.m}: it takes key {loss.key}, and "
        f"{loss.against} is faster there"
    )
