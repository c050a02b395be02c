"""Train a small drafter for SmolLM2-135M on what the target itself says.

    python -m benchmarks.distil write TEXTS.jsonl [--gpu] [--chats 2000]
    python -m benchmarks.distil train TEXTS.jsonl FOLDER [--seconds 90]

``write`` lets a vLLM server of the target answer made-up requests of both kinds, greedily and at
temperature 0.8, and keeps token ids. ``train`` begins with four of the target's thirty layers and
makes their distribution that of the target (Kullback-Leibler, over the vocabulary that occurs); the
embedding stays the target's own. On two cores 90 s show that it works, not what it can reach.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import kl_div, log_softmax, softmax
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from autotune.serving.measure.client import Load, run_load
from autotune.serving.measure.prompts import Prompt
from benchmarks.real_model import GPU_ARGS, GPU_ENV, NGRAM, dialled
from tests.serving.real_server import CACHE_ARGS, CPU_ARGS, CPU_ENV
from tests.support.real_model import shallow, smollm2

TOPICS = """the moon|bees|bread|electric cars|the Roman Empire|chess|coral reefs|gardening|coffee|
photography|volcanoes|jazz|libraries|recycling|sleep|rain forests|dogs|bicycles|solar energy|
job interviews|saving money|learning a language|dinosaurs|black holes|yoga|soup|a lost robot|
a dragon who is afraid of fire|a detective in a small town|friendship|the internet|sorting numbers|
databases|vitamins|whales|penguins|trees|rivers|thunderstorms|the planets|gravity|magnets|DNA|
democracy|football|swimming|poetry|the piano|a trip to Spain|a birthday party|a letter to a
landlord|exams|stress|breakfast|cheese|clocks|bridges|castles|pirates|rockets|a rainy Sunday|
night trains|old maps|a school play|winter tyres|tomatoes|lighthouses|a flea market""".replace(
    "\n", " "
).split("|")
TASKS = (
    "Explain {} in simple terms.",
    "Give me five facts about {}.",
    "Write a short story about {}.",
    "What are the advantages and disadvantages of {}?",
    "How would you describe {} to a child?",
    "Give me some tips about {}.",
    "What should I know about {} and {}?",
    "Write a short email to a friend about {}.",
    "Compare {} with {}.",
    "I am writing an essay on {}. Give me an outline.",
)
REWRITINGS = (
    "Copy the following text exactly:",
    "Fix any mistakes in the following text and write out the whole corrected text:",
    "Write the following text out again, with every name replaced by another one:",
)


def requests(count: int) -> list[Prompt]:
    """Questions about topics; every answer may come back as a text to be rewritten."""
    chance = random.Random(7)
    return [
        Prompt.of(task.format(*chance.sample(TOPICS, task.count("{}"))))
        for task in chance.choices(TASKS, k=count)
    ]


def write(args: argparse.Namespace) -> None:
    flags = GPU_ARGS if args.gpu else (*CPU_ARGS, *CACHE_ARGS)
    env, lanes = (GPU_ENV, 128) if args.gpu else (CPU_ENV, 8)
    chance = random.Random(8)
    flags = (*flags, "--enforce-eager")
    with dialled(NGRAM, [0, 1], lanes, flags, env) as (wire, _):
        base = Load(
            wire.server.url, wire.server.model, requests(args.chats), args.chats, lanes,
            args.tokens, ignore_eos=False, extra={"return_token_ids": True, "temperature": 0.8},
        )  # fmt: skip
        first = run_load(base)
        texts = [record.text for record in first.records if len(record.text) > 200]
        again = [Prompt.of(f"{chance.choice(REWRITINGS)}\n\n{text[:900]}") for text in texts]
        greedy = {"return_token_ids": True}
        second = run_load(replace(base, prompts=again, requests=len(again), extra=greedy))
    rows = [
        {"prompt": record.prompt_ids, "text": record.tokens}
        for record in (*first.records, *second.records)
        if not record.error
    ]
    args.texts.write_text("\n".join(map(json.dumps, rows)) + "\n")
    print(len(rows), "texts", sum(len(row["text"]) for row in rows), "tokens", file=sys.stderr)


def batches(rows: list[dict[str, Any]], tokens: int) -> list[list[dict[str, Any]]]:
    """Rows of about the same length together, up to so many tokens with their padding."""
    found: list[list[dict[str, Any]]] = [[]]
    for row in sorted(rows, key=lambda row: len(row["prompt"]) + len(row["text"])):
        if (len(found[-1]) + 1) * (len(row["prompt"]) + len(row["text"])) > tokens:
            found.append([])
        found[-1].append(row)
    return [batch for batch in found if batch]


class Pair:
    """Target and drafter, and the tokens that they are compared on."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]]) -> None:

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        load = AutoModelForCausalLM.from_pretrained
        self.target = load(smollm2(), dtype=torch.bfloat16).eval().to(self.device)
        if self.device == "cpu":
            self.target = self.target.float()  # which this processor is five times faster at
        self.drafter = load(folder, dtype=torch.float32).to(self.device)
        self.embedding = self.drafter.model.embed_tokens.weight.requires_grad_(False)
        used = sorted({token for row in rows for token in (*row["prompt"], *row["text"])})
        self.head = self.embedding[torch.tensor(used, device=self.device)].contiguous()

    def hidden(self, model: Any, batch: list[dict[str, Any]]) -> Any:
        """The last hidden states at every place before a token of a text, [tokens, hidden]."""

        rows = [[*row["prompt"], *row["text"]] for row in batch]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        kept = torch.zeros(ids.shape, dtype=torch.bool)
        for index, (row, tokens) in enumerate(zip(batch, rows, strict=True)):
            ids[index, : len(tokens)] = torch.tensor(tokens)
            kept[index, len(row["prompt"]) - 1 : len(tokens) - 1] = True
        states = model.model(input_ids=ids.to(self.device), use_cache=False).last_hidden_state
        return states[kept.to(self.device)].float()  # padding is on the right: causal needs no mask

    def loss(self, batch: list[dict[str, Any]]) -> tuple[Any, Any]:
        """The divergence in nats per token, and the share of tokens of which both think best."""

        with torch.no_grad():
            target = self.hidden(self.target, batch) @ self.head.T
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
            states = self.hidden(self.drafter, batch)
        drafted = states @ self.head.T
        same = (target.argmax(-1) == drafted.argmax(-1)).float().mean()
        divergence = kl_div(log_softmax(drafted, -1), softmax(target, -1), reduction="batchmean")
        return divergence, same


def train(args: argparse.Namespace) -> None:

    torch.manual_seed(0)
    rows = [json.loads(line) for line in args.texts.read_text().splitlines()]
    random.Random(0).shuffle(rows)
    held = max(4, len(rows) // 20)
    pair = Pair(shallow(smollm2(), args.folder), rows)
    weights = [p for p in pair.drafter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.rate, betas=(0.9, 0.95), weight_decay=0.01)
    size = 16384 if pair.device == "cuda" else 1024
    order, began, step = list[list[dict[str, Any]]](), time.monotonic(), 0
    while (done := (time.monotonic() - began) / args.seconds) < 1:
        if not order:
            order = batches(rows[held:], size)
            random.Random(step).shuffle(order)
        warm = min(1, (step + 1) / 20)
        optimizer.param_groups[0]["lr"] = (
            args.rate * warm * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))
        )
        loss, same = pair.loss(order.pop())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 1:
            print(f"{done:.0%} step {step} {loss:.3f} nats {same:.3f} same", file=sys.stderr)
    with torch.no_grad():
        ends = [pair.loss(batch) for batch in batches(rows[:held], size)]
    told = [float(sum(values) / len(ends)) for values in zip(*ends, strict=True)]
    print(f"{step} steps; held out: {told[0]:.3f} nats, {told[1]:.3f} the same", file=sys.stderr)
    config = (args.folder / "config.json").read_bytes()
    pair.drafter.to(torch.bfloat16).save_pretrained(args.folder)
    (args.folder / "config.json").write_bytes(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True)
    writing = verbs.add_parser("write")
    writing.add_argument("texts", type=Path)
    writing.add_argument("--chats", type=int, default=48)
    writing.add_argument("--tokens", type=int, default=160)
    writing.add_argument("--gpu", action="store_true")
    writing.set_defaults(run=write)
    training = verbs.add_parser("train")
    training.add_argument("texts", type=Path)
    training.add_argument("folder", type=Path)
    training.add_argument("--seconds", type=float, default=90)
    training.add_argument("--rate", type=float, default=1e-3)
    training.set_defaults(run=train)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
