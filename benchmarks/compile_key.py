"""Which settings share what vLLM compiles: the key of its compile cache, asked of vLLM itself.

    python -m benchmarks.compile_key benchmarks/results/compile-key-0.32.json

``VllmConfig.compute_hash`` is the configuration's part of the key of the caches of torch.compile
(``compilation/backends.py``, ``compilation/caching.py``), and of a stored startup plan
(``v1/worker/startup_plan.py``). No server is started; the model is that of the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from autotune.machine.environment import environment
from tests.support.real_model import smollm2

SIZES = ([1, 2, 5, 10], [1, 2, 3, 6])
SCHEDULE = [[1, 12, 4], [13, 13, 0], [14, 14, 1], [15, 15, 2], [16, 16, 3]]


def key(model: str, gamma: int, *, sizes: list[int] | None = None, **changes: Any) -> str:
    """The key of a server that drafts ``gamma`` tokens with a draft model."""
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415

    speculative = {"method": "draft_model", "model": model, "num_speculative_tokens": gamma}
    if schedule := changes.pop("schedule", None):
        speculative["num_speculative_tokens_per_batch_size"] = schedule
    given = {"max_model_len": 1024, "max_num_seqs": 16, "gpu_memory_utilization": 0.5} | changes
    args = EngineArgs(model=model, speculative_config=speculative if gamma else None, **given)
    config = args.create_engine_config()
    if sizes is not None:  # a CPU captures no graphs, and would drop the flag
        config.compilation_config.cudagraph_capture_sizes = sizes
    return str(config.compute_hash())


def main(out: Path) -> None:
    """Write which pairs of settings have one key."""
    model = str(smollm2())
    two, four = key(model, 2), key(model, 4)
    found = {
        "packages": environment()["packages"],
        "same key": {
            "gamma 2 and 4": two == four,
            "gamma 0 and 4": key(model, 0) == four,
            "gamma 4 with and without a schedule by batch size": four
            == key(model, 4, schedule=SCHEDULE),
            "gamma 2 and 4, the same list of capture sizes": key(model, 2, sizes=SIZES[0])
            == key(model, 4, sizes=SIZES[0]),
            "gamma 2, two lists of capture sizes": key(model, 2, sizes=SIZES[0])
            == key(model, 2, sizes=SIZES[1]),
            "max-num-seqs 16 and 22": four == key(model, 4, max_num_seqs=22),
            "gpu-memory-utilization 0.5 and 0.9": four == key(model, 4, gpu_memory_utilization=0.9),
        },
    }
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
