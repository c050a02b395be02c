"""The plugin puts vLLM's Ray executor into the placement group that the tuner made for a server.

vLLM takes the group of the Ray actor that it runs in (``initialize_ray_cluster`` in
``vllm/v1/executor/ray_utils.py`` of vLLM 0.24 to 0.33 asks
``ray.util.get_current_placement_group``). ``vllm serve`` runs under our supervisor and not in an
actor, so that all of it ends when the tuner does; to Ray it is a driver, which has no group, and it
would make one of its own, of whatever GPUs are free.

It stands alone, with nothing of ``autotune``: the server may run in another environment.
"""

from __future__ import annotations

import os
from typing import Any

GROUP = "AUTOTUNE_PLACEMENT_GROUP"
"""Environment variable with the group's id, in hex."""
IN_PLACE = "autotune: the placement group is "
"""What the server's log says before the id."""


def register() -> None:
    """Answer with the tuner's group; vLLM calls this once in each of its processes."""
    group = os.environ.get(GROUP)
    if not group:
        return
    import ray.util  # noqa: PLC0415
    from ray.util.placement_group import PlacementGroup  # noqa: PLC0415

    original = ray.util.get_current_placement_group
    if hasattr(original, "placed"):
        return

    def placed() -> Any:
        print(f"{IN_PLACE}{group}", flush=True)  # noqa: T201  (the tuner reads the log)
        return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group)))

    placed.placed = True  # type: ignore[attr-defined]
    ray.util.get_current_placement_group = placed
