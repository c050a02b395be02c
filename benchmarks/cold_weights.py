"""Does a row of a tuned file keep its gain over as many layers' weights as a model has?

    python -m benchmarks.cold_weights FILE.json OUT.json [LAYERS]

On a GPU. Times the rows of FILE and of vLLM's default for Gemma 4 26B-A4B (FP8), side by side with
fresh routings every round, once with the weights of one layer, as `autotune moe` does, and once
with those of LAYERS (30 as in the model), each call with another layer's. One layer's 761 MB do not
fit the GPU's L2 cache either, but what few tokens need of them may, and its TLBs may reach all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe import fused_moe

from autotune.decide.stats import paired_ratio
from autotune.export.files import write_whole
from autotune.kernels.measure.problem import Problem
from autotune.kernels.measure.process import _Graph
from autotune.kernels.moe.from_model import load_config, shape_from_config
from autotune.kernels.moe.routing import parse_routing
from autotune.machine.environment import environment

MS = (1, 4, 8, 16, 40, 85, 170, 340, 680, 3000)
ROUNDS, REPLAYS = 15, 5
EXTRA = {8: {"BLOCK_SIZE_N 64, five stages": {"BLOCK_SIZE_N": 64}}}
"""What two later searches chose instead, as changes of the file's row."""


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    tuned, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    layers = int(sys.argv[3]) if len(sys.argv) > 3 else 30
    shape = shape_from_config(load_config("gemma-4-26b-a4b"), dtype="fp8_w8a8")
    result: dict[str, Any] = {"environment": environment(), "timed": []}
    keys = sorted(int(key) for key in tuned if key.isdigit())
    size = shape.experts * 3 * shape.intermediate * shape.hidden
    with set_current_vllm_config(VllmConfig()):
        for copies in (1, layers):
            problem = Problem(shape, parse_routing("uniform"), 0, copies * size // 4)
            worker: Any = SimpleNamespace(problem=problem, pool=torch.cuda.graph_pool_handle())
            for m in MS:
                default = fused_moe.get_default_config(
                    m, shape.experts, shape.intermediate, shape.hidden, shape.topk, "fp8_w8a8", None
                )
                default = {"num_warps": 4, "num_stages": 3} | default
                _, nearest = min((abs(key - m), key) for key in keys)
                own = tuned[str(nearest)]
                rows = {"default": default, "file": own}
                rows |= {name: own | change for name, change in EXTRA.get(m, {}).items()}
                inputs = problem.inputs(m, layers, 1)
                graphs = {name: _Graph(worker, params, inputs) for name, params in rows.items()}
                samples: dict[str, list[float]] = {name: [] for name in graphs}
                for turn in range(ROUNDS):
                    problem.redraw(inputs, 100 + turn)
                    names = list(graphs)
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        graphs[name].replay_us()
                        replays = [graphs[name].replay_us() for _ in range(REPLAYS)]
                        samples[name].append(median(replays))
                for name, rounds in samples.items():
                    ratio = paired_ratio(samples["default"], rounds)
                    over, us = [ratio.value, ratio.low, ratio.high], median(rounds)
                    row = {"layers": copies, "m": m, "row": name, "us": us, "over": over}
                    result["timed"].append(row | {"params": rows[name]})
                    print(copies, m, name, round(us, 1), *(f"{x:.3f}" for x in over), flush=True)
                for graph in graphs.values():
                    graph.close()
            del problem, worker
            torch.cuda.empty_cache()
            write_whole(out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
