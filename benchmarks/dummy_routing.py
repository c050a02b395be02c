"""To how many experts do dummy weights send their tokens? Counted with vLLM's CPU build.

    python -m benchmarks.dummy_routing FOLDER

Serves :mod:`benchmarks.gpu_grid`'s target with thin experts in bf16 (its 30 routers have their full
size), and counts the distinct experts of every layer: of a step of eight sequences that decode, and
of all their prompts at once; beside what uniform routing would give, E·(1 - (1 - k/E)^M). And how
many different tokens the answers have: what goes in alike goes to the same experts.
"""

from __future__ import annotations

import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
import torch
from vllm import LLM, SamplingParams
from vllm.model_executor.models.gemma4 import Gemma4Router

from autotune.serving.forecast.acceptance import distinct_experts
from autotune.util.words import counted
from benchmarks.gpu_grid import random_words, text_config, write_model

SEQUENCES, PROMPT, OUTPUT = 8, 60, 12


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    thin = {"architectures": ["Gemma4ForCausalLM"], "moe_intermediate_size": 64}
    config = text_config(30) | thin
    write_model(folder, config)
    experts, chosen = config["num_experts"], config["top_k_experts"]
    counts: dict[int, list[int]] = defaultdict(list)
    routed = Gemma4Router.forward

    def counting(self: Any, x: Any) -> Any:
        logits = routed(self, x)
        ids = torch.topk(logits.float(), chosen, dim=-1).indices
        counts[len(ids)].append(len(ids.unique()))
        return logits

    Gemma4Router.forward = counting
    served = LLM(
        str(folder), load_format="dummy", enforce_eager=True, max_model_len=512, max_num_seqs=8
    )
    counts.clear()  # of the memory's profile
    drawn = random.Random(0)
    prompts = [random_words(drawn, PROMPT) for _ in range(SEQUENCES)]
    greedy = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    answers = served.generate(prompts, greedy, use_tqdm=False)
    for tokens, found in sorted(counts.items()):
        uniform = distinct_experts(experts, chosen, tokens)
        print(
            f"{tokens} tokens: {fmean(found):.1f} experts in {len(found)} calls "
            f"({min(found)} to {max(found)}); no more than {chosen} in "
            f"{found.count(chosen) / len(found):.0%} of them; uniform {uniform:.1f}"
        )
    words = {token for answer in answers for token in answer.outputs[0].token_ids}
    print(f"{len(answers)} answers of {OUTPUT} tokens: {counted(len(words), 'different token')}")


if __name__ == "__main__":
    main()
