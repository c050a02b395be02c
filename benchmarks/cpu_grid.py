"""A grid of gamma for :mod:`benchmarks.record_grid` on a machine without a GPU: models and CONFIG.

    python -m benchmarks.cpu_grid FOLDER [NOISE]

Writes a Qwen3 of 32 thin layers, a drafter of its first two with noise (0.1 of a matrix's standard
deviation by default: the more, the less is accepted), and FOLDER/config.json for gamma 0 to 6.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.serving.real_server import CACHE_ARGS, CPU_ARGS, CPU_ENV
from tests.serving.tiny_models import make_deep_pair

LAYERS = 32


def main() -> None:
    folder = Path(sys.argv[1])
    noise = float(sys.argv[2]) if len(sys.argv) > 2 else 0.1
    target, drafter = make_deep_pair(folder, layers=LAYERS, noise=noise)
    load = {"name": "chat", "prompts": "chat", "concurrency": [1, 4], "max_tokens": 48}
    config = {
        "target": str(target),
        "drafter": str(drafter),
        "method": "draft_model",
        "synthetic": [],
        "server_args": [*CPU_ARGS, *CACHE_ARGS, "--no-enable-prefix-caching"],
        "env": CPU_ENV,
        "rounds": 3,
        "settings": [{"name": f"g{gamma}", "gamma": gamma} for gamma in range(7)],
        "loads": [load | {"repeats": 3, "waves": 2}],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
