"""One command at a time on a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autotune.core import MissingEnvironmentError
from autotune.machine.gpu_lock import hold_gpus

HOLD = """
import sys
from pathlib import Path
from autotune.machine.gpu_lock import hold_gpus
with hold_gpus([0, 1], Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_the_holder_is_named_and_death_frees(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(MissingEnvironmentError) as error,
            hold_gpus([2, 1], folder),
        ):
            pass
        assert f"GPU 1 is being measured on by process {other.pid} (since 2" in str(error.value)
        with hold_gpus([2], folder):  # what was taken before the refusal was given back
            pass
        other.kill()
    with hold_gpus([0, 1, 2], folder):
        pass


def test_what_is_done_meanwhile_fails_as_itself(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), hold_gpus([0], tmp_path):
        raise OSError("mine")
    with hold_gpus([0], tmp_path):
        pass
