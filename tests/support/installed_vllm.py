"""The installed vLLM, loaded once, for scripts that ask what it does and servers that end early."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from autotune.serving.server.launchers import _metadata_folder
from tests.support.preloaded import Preloaded

NEEDS = (
    *("torch._inductor.lowering", "torch._inductor.standalone_compile", "sklearn.metrics"),
    *("transformers.models.auto.image_processing_auto", "transformers.modeling_gguf_pytorch_utils"),
    *("openai.types.responses", "fastapi", "compressed_tensors"),
)
"""What vLLM imports of others, which is most of it; no GPU or platform is chosen yet."""
VLLM = ("vllm.entrypoints.cli.serve", "vllm.model_executor.layers.fused_moe.fused_moe")


class InstalledVllm:
    """Processes that have imported vLLM, or all that it needs, without a GPU."""

    def __init__(self, folder: Path) -> None:
        metadata = _metadata_folder(folder)
        env = {"CUDA_VISIBLE_DEVICES": "", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        places = (str(metadata or ""), os.environ.get("PYTHONPATH", ""))
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
        self._pythons = Preloaded(folder, env, bare=NEEDS, whole=VLLM)
        self.python = self._pythons.program("whole")
        """A Python that has imported vLLM for CPUs."""
        self.bare = self._pythons.program("bare")
        """One that has not, so that a script may choose what vLLM believes to run on."""

    def run(self, script: str, *args: str, **env: str) -> str:
        """Run a script that may import vLLM, with these arguments and this environment.

        Returns:
            What it printed, on stdout and stderr.
        """
        ran = subprocess.run(
            [*self.python, "-c", script, *args],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout or self._pythons.log.read_text()
        return ran.stdout

    def close(self) -> None:
        """End the processes."""
        self._pythons.close()
