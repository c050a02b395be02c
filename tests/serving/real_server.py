"""How the real vLLM server is started on a machine without a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.plugins import with_plugin
from autotune.serving.server.server import Server, ServeSettings, start
from tests.serving.tiny_models import TinyModels

START_S = 400.0
"""A starved machine once took four minutes; a quiet one takes half of one."""
CPU_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_CI_ENV": "1"}
CPU_ARGS = ("--enforce-eager", "--max-model-len", "1024")
CACHE_ARGS = ("--kv-cache-memory-bytes", "268435456")
FLOAT32 = ("--dtype", "float32")
"""Processors without AMX multiply bfloat16 many times slower."""
QUICK_ENV = with_plugin(
    {
        **CPU_ENV,
        "OMP_NUM_THREADS": "1",
        # Drafting by n-grams is numba's, which gives all of the process its own number of threads:
        # two that spin for each other in each operation, seconds a token on a busy machine.
        "NUMBA_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    },
    Path(__file__).parent / "vllm_forks",
    "vllm_forks",
)
"""For servers of tiny models that only have to be there soon: one import of vLLM, one thread."""


def cpu_settings(
    model: Path | str,
    *args: str,
    speculative: Mapping[str, Any] | None = None,
    env: Mapping[str, str] = QUICK_ENV,
) -> ServeSettings:
    """A small, quick server: eager, 1024 tokens of context, a quarter of a GiB of KV cache."""
    given = (*CPU_ARGS, *FLOAT32, *(args or CACHE_ARGS))
    return ServeSettings(str(model), speculative, extra_args=given, env=env)


class SharedServer:
    """One server with a drafter for all tests that only ask; started when first needed.

    A test may end it: whoever comes next gets a new one.
    """

    def __init__(self, models: TinyModels, folder: Path) -> None:
        self._models, self._folder = models, folder
        self._server: Server | None = None

    def get(self) -> Server:
        """The server, running."""
        if self._server is not None and self._server.failure() is not None:
            self.stop()
        if self._server is None:
            target = self._models.qwen3
            drafter = self._models.noisy(target, 0.1)
            settings = cpu_settings(
                target,
                speculative={
                    "method": "draft_model",
                    "model": str(drafter),
                    "num_speculative_tokens": 2,
                },
            )
            log = Path(tempfile.mkdtemp(dir=self._folder)) / "log"
            self._server = start(LocalLauncher(), settings, log, START_S)
        return self._server

    def stop(self) -> None:
        """End the server, if there is one."""
        if self._server is not None:
            self._server.stop()
            self._server = None
