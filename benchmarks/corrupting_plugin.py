"""A vLLM whose speculation is broken in a chosen way, for ``output_gate.py`` to find out.

A plugin of vLLM's V1 model runner (group ``vllm.general_plugins``), which stands alone: it is
copied beside the entry point that loads it. Three bytes of a file turn it while the server runs:
which fault, in how many per cent of steps, and after how many tokens of a text it begins.
"""

from __future__ import annotations

import mmap
import os
import random
from typing import Any

PATH = "AUTOTUNE_BREAK"
IN_PLACE = "autotune: this server can be broken"
FAULTS = (
    "none",
    "a draft is accepted among the target's three best tokens",
    "the last draft of a step is accepted unseen",
    "drafted rows have positions one too high",
    "a rejected draft's key and value stay",
)


class Fault:
    """What is broken now, and in which requests of this step."""

    def __init__(self, path: str) -> None:
        file = os.open(path, os.O_RDONLY)
        try:
            self.bytes = mmap.mmap(file, 3, access=mmap.ACCESS_READ)
        finally:
            os.close(file)
        self.chance = random.Random(0)
        self.broken: set[int] = set()
        self.ends: dict[str, int] = {}

    @property
    def kind(self) -> int:
        return self.bytes[0]

    def choose(self, runner: Any, drafts: dict[str, list[int]]) -> None:
        """The rows of the batch that are broken in this step."""
        batch = runner.input_batch
        self.broken = {
            batch.req_id_to_index[name]
            for name in drafts
            if len(runner.requests[name].output_token_ids) >= self.bytes[2]
            and self.chance.randrange(100) < self.bytes[1]
        }

    def shift(self, runner: Any) -> None:
        """Rotate the drafted rows as if they stood one place later; their slots are right."""
        for index in self.broken:
            first, end = runner.query_start_loc.np[index : index + 2]
            runner.positions[int(first) + 1 : int(end)] += 1

    def leave_stale(self, runner: Any, scheduled: dict[str, int]) -> None:
        """Do not write the first row's key and value where a rejected draft has left its own."""
        batch = runner.input_batch
        for name, index in batch.req_id_to_index.items():
            if name not in scheduled:
                continue
            start = int(batch.num_computed_tokens_cpu[index])
            stale = start < self.ends.get(name, 0)
            self.ends[name] = start + scheduled[name]
            if self.kind == 4 and stale and index in self.broken:
                row = int(runner.query_start_loc.np[index])
                for table in batch.block_table.block_tables:
                    table.slot_mapping.gpu[row] = -1
        self.ends = {name: end for name, end in self.ends.items() if name in batch.req_id_to_index}

    def accept(self, drafts: Any, counts: list[int], logits: Any) -> None:
        """Make the target's logits say what the fault accepts; logits are [drafts, vocabulary]."""
        tokens, best, row = drafts.tolist(), logits.topk(3).indices.tolist(), 0
        for index, count in enumerate(counts):
            for place in range(count):
                token = tokens[row]
                taken = token in best[row] if self.kind == 1 else place == count - 1
                if taken and token >= 0 and index in self.broken:
                    logits[row, token] = logits[row].max() + 1
                row += 1


def register() -> None:
    """Wrap the runner's preparation and the rejection sampler; vLLM calls this in each process."""
    path = os.environ.get(PATH)
    if not path:
        return
    from vllm.v1.sample import rejection_sampler  # noqa: PLC0415
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # noqa: PLC0415

    if hasattr(GPUModelRunner, "breakable"):
        return
    fault = Fault(path)
    prepare, sample = GPUModelRunner._prepare_inputs, rejection_sampler.rejection_sample

    def prepare_inputs(self: Any, output: Any, *args: Any) -> Any:
        found = prepare(self, output, *args)
        fault.choose(self, output.scheduled_spec_decode_tokens)
        if fault.kind == 3:
            fault.shift(self)
        fault.leave_stale(self, output.num_scheduled_tokens)
        return found

    def rejection_sample(*args: Any, **kwargs: Any) -> Any:
        if fault.kind in {1, 2}:
            fault.accept(args[0], args[1], args[5])
        return sample(*args, **kwargs)

    GPUModelRunner._prepare_inputs = prepare_inputs
    GPUModelRunner.breakable = True
    rejection_sampler.rejection_sample = rejection_sample
    print(IN_PLACE, flush=True)
