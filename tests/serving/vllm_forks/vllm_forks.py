"""A plugin for vLLM: the processes of a CPU server are forked from the first, all imported.

vLLM's CPU platform starts each anew, so that OpenMP reads its variables anew: three times the
imports, which are most of a boot of a tiny model. With one thread there is nothing to read.

Nor does a process that waits for another one spin: the core it would take is one that others need.
"""

from __future__ import annotations

import os
import time
from typing import Any

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
YIELD_S = 0.0002
"""Next to a step's milliseconds, nothing."""


def register() -> None:
    """Have vLLM fork where its CPU platform has chosen to spawn, and wait without spinning."""
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.platforms.cpu import CpuPlatform

    waiting: Any = shm_broadcast
    waiting.sched_yield = lambda: time.sleep(YIELD_S)
    platform: Any = CpuPlatform
    update = platform.check_and_update_config

    def forking(vllm_config: Any) -> None:
        update(vllm_config)
        os.environ[METHOD] = "fork"

    platform.check_and_update_config = staticmethod(forking)
