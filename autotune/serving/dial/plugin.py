"""The plugin makes vLLM's scheduler read gamma from one byte that the tuner writes.

vLLM loads it by the entry point that ``dial.py`` writes beside it (group ``vllm.general_plugins``,
``vllm/plugins/__init__.py``) into every process of a server that the tuner starts, and into no
other. It stands alone, with nothing of ``autotune``: the server may run in another environment.

Where a server was started with ``num_speculative_tokens_per_batch_size``, the scheduler looks the
number of tokens to draft up by batch size (``Scheduler.dynamic_sd_lookup`` in
``vllm/v1/core/sched/scheduler.py`` of vLLM 0.24 to 0.33). The plugin puts itself in the place of
that table.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

PATH = "AUTOTUNE_GAMMA_DIAL"
"""Environment variable with the path of the file that holds the byte."""
IN_PLACE = "autotune: the gamma dial is in place"
"""What the server's log says once the scheduler reads the byte."""


class Dial:
    """The dial stands for the scheduler's table: whatever the batch, it answers the byte."""

    def __init__(self, path: str, most: int, length: int) -> None:
        """Map the file; ``most`` is the largest gamma, ``length`` that of the table replaced."""
        self._most, self._length = most, length
        file = os.open(path, os.O_RDONLY)
        try:
            self._byte = mmap.mmap(file, 1, access=mmap.ACCESS_READ)
        finally:
            os.close(file)

    def __getitem__(self, batch: int) -> int:
        return min(self._byte[0], self._most)

    def __len__(self) -> int:
        return self._length


def register() -> None:
    """Wrap the scheduler's constructor; vLLM calls this once in each of its processes."""
    path = os.environ.get(PATH)
    if not path:
        return
    from vllm.v1.core.sched.scheduler import Scheduler  # noqa: PLC0415

    original = Scheduler.__init__
    if hasattr(original, "dialled"):
        return

    def with_dial(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        table = getattr(self, "dynamic_sd_lookup", None)
        if table is not None:
            self.dynamic_sd_lookup = Dial(path, max(table), len(table))
            print(IN_PLACE, flush=True)  # noqa: T201  (the tuner reads the log)

    with_dial.dialled = True  # type: ignore[attr-defined]
    Scheduler.__init__ = with_dial
