"""What parent and measuring process share: the race of a candidate, and who has which GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from autotune.core import MissingEnvironmentError
from autotune.kernels.measure import requests
from autotune.kernels.measure.requests import GpuSetup, claim_gpu, raced_samples
from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme

SHAPE = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)


def replays(*samples: float) -> Iterator[float]:
    yield from samples


@pytest.mark.parametrize(
    ("samples", "taken", "raced"),
    [
        ((100, 101, 102, 103, 104, 105), 5, False),
        ((114, 114, 114, 114, 114, 114), 5, False),
        ((116, 116, 100), 2, True),
        # Disturbed once: a kernel of 34.4 µs was once recorded as one of 436.
        ((436, 100, 101, 102, 103, 104), 5, False),
        # Too slow, and disturbed.
        ((436, 120, 100), 2, True),
    ],
)
def test_a_race_is_lost_by_two_slow_samples(
    samples: tuple[float, ...], taken: int, raced: bool
) -> None:
    given = replays(*samples)
    assert raced_samples(lambda: next(given), 100.0) == (list(samples[:taken]), raced)


def test_the_first_candidate_has_nothing_to_race_against() -> None:
    given = replays(*[1e9] * 6)
    assert raced_samples(lambda: next(given), float("inf")) == ([1e9] * 5, False)


def setup(folder: Path, *gpus: int) -> GpuSetup:
    return GpuSetup(SHAPE, Routing(), 0, 1, gpus, "", str(folder))


def test_gpus_are_claimed_in_turn(tmp_path: Path) -> None:
    first, one = claim_gpu(setup(tmp_path, 3, 5))
    second, other = claim_gpu(setup(tmp_path, 3, 5))
    assert (first, second) == (3, 5)
    with pytest.raises(MissingEnvironmentError, match=r"no GPU is free of 2$"):
        claim_gpu(setup(tmp_path, 3, 5))
    one.release()
    again, lock = claim_gpu(setup(tmp_path, 3, 5))
    assert again == 3
    for held in (other, lock):
        held.release()


def test_a_killed_process_has_time_to_give_its_gpu_back(tmp_path: Path) -> None:
    code = "import time; time.sleep(0.5)"
    with subprocess.Popen([sys.executable, "-c", code]) as leaves:
        (tmp_path / "gpu-0.lock").write_text(str(leaves.pid))
        free, lock = claim_gpu(setup(tmp_path, 0))
        assert free == 0
        lock.release()


def test_a_gpu_whose_last_process_does_not_end_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks are gone, it is not."""
    monkeypatch.setattr(requests, "LEAVING_S", 0.2)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stays:
        (tmp_path / "gpu-0.lock").write_text(str(stays.pid))
        free, lock = claim_gpu(setup(tmp_path, 0, 1))
        assert free == 1
        said = f"no GPU is free of 2: process {stays.pid} was ended and stays on GPU 0"
        with pytest.raises(MissingEnvironmentError, match=said):
            claim_gpu(setup(tmp_path, 0, 1))
        lock.release()
        stays.kill()
    assert not psutil.pid_exists(stays.pid)
    free, lock = claim_gpu(setup(tmp_path, 0))
    assert free == 0
    assert (tmp_path / "gpu-0.lock").read_text() == str(os.getpid())
    lock.release()
