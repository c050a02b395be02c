"""The installed vLLM, loaded once, for scripts that ask what it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# Each script runs in a fork: what it changes in vLLM, the next one does not see.
_SERVE = """
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import vllm.model_executor.layers.fused_moe.fused_moe
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        out = os.open(asked["out"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(asked["env"])
        sys.argv, code = ["-c", *asked["args"]], 1
        try:
            exec(asked["script"], {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""


class InstalledVllm:
    """A process that has imported vLLM's fused MoE layer, without a GPU."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._asked = folder, 0
        log = (folder / "log").open("w")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE],
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "VLLM_NO_USAGE_STATS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def run(self, script: str, *args: str, **env: str) -> str:
        """Run a script that may import vLLM, with these arguments and this environment.

        Returns:
            What it printed, on stdout and stderr.
        """
        self._asked += 1
        out = self._folder / f"out-{self._asked}"
        asked = {"script": script, "args": args, "env": env, "out": str(out)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code = self._process.stdout.readline()
        assert code == "0\n", out.read_text() if code else (self._folder / "log").read_text()
        return out.read_text()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
