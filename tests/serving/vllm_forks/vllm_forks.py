"""A plugin for vLLM: the processes of a CPU server are forked from the first, all imported.

vLLM's CPU platform starts each anew, so that OpenMP reads its variables anew: three times the
imports, which are most of a boot of a tiny model. With one thread there is nothing to read.
"""

from __future__ import annotations

import os
from typing import Any

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def register() -> None:
    """Have vLLM fork where its CPU platform has chosen to spawn."""
    from vllm.platforms.cpu import CpuPlatform

    platform: Any = CpuPlatform
    update = platform.check_and_update_config

    def forking(vllm_config: Any) -> None:
        update(vllm_config)
        os.environ[METHOD] = "fork"

    platform.check_and_update_config = staticmethod(forking)
