"""Bad input to ``autotune spec``: one line, the right exit code, no server started."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from autotune import cli
from autotune.machine.memory import MemoryKind, MemoryReading
from tests.serving.tiny_models import TinyModels
from tests.support.commands import refused

BAD, MISSING = 2, 3
SMALL = "--server-arg '--kv-cache-memory-bytes 268435456'"
"""What is free on the machine of the test then decides nothing."""

CASES: dict[str, tuple[str, str]] = {
    "no such target": ("--target {t}/none --drafter ngram", "none"),
    "target is a file": ("--target {t}/file.txt --drafter ngram", "file.txt"),
    "target without config": ("--target {t}/empty --drafter ngram", "config.json"),
    "config is not JSON": ("--target {t}/broken --drafter ngram", "config.json"),
    "no such drafter": ("--target {m} --drafter {t}/none", "--drafter"),
    "a method that needs a model": ("--target {m} --drafter eagle3", "needs a drafter's model"),
    "a target without MTP layers": ("--target {m} --drafter mtp", "MTP layers"),
    "another tokenizer": ("--target {m} --drafter {t}/other", "vocab"),
    "gamma is a word": ("{p} --gamma many", "--gamma many"),
    "gamma is empty": ("{p} --gamma ''", "--gamma"),
    "gamma backwards": ("{p} --gamma 6-2", "--gamma 6-2"),
    "gamma is negative": ("{p} --gamma=-1", "--gamma -1"),
    "gamma is huge": ("{p} --gamma 65", "--gamma 65"),
    "gamma 0 alone": ("{p} --gamma 0", "name one above 0"),
    "gamma 0 alone without a drafter": ("--target {m} --gamma 0", "several values of another"),
    "no drafter": ("--target {m} --gamma 0,2", "--drafter: is missing"),
    "no drafter and nothing else": ("--target {m} --drafter none", "several values of another"),
    "acceptance without a drafter": (
        "--target {m} --gamma 0 --set max-num-seqs=1,2 --synthetic-acceptance .5",
        "without a drafter nothing is accepted",
    ),
    "gamma without a drafter": ("--target {m} --drafter none --gamma 0,2", "drafts nothing"),
    "a space's gamma without a drafter": (
        "--target {m} --drafter none --space gemma-4-26b-a4b-gb10",
        "drafts nothing",
    ),
    "concurrency 0": ("{p} --concurrency 0", "--concurrency 0"),
    "concurrency is a word": ("{p} --concurrency all", "--concurrency all"),
    "concurrency twice": ("{p} --concurrency 4,4", "given twice"),
    "no such prompts": ("{p} --prompts poems", "poems"),
    "prompts file missing": ("{p} --prompts {t}/none.jsonl", "none.jsonl"),
    "prompts not JSON": ("{p} --prompts {t}/bad.jsonl", "bad.jsonl:2"),
    "prompts empty": ("{p} --prompts {t}/void.jsonl", "holds no prompt"),
    "max tokens 1": ("{p} --max-tokens 1", "--max-tokens 1"),
    "max tokens beyond what is served": (
        "{p} --max-tokens 1024 --server-arg '--max-model-len 1024'",
        "--max-tokens 1024 leaves no room for a prompt",
    ),
    "max tokens is a word": ("{p} --max-tokens many", "--max-tokens"),
    "repeats 0": ("{p} --repeats 0", "--repeats 0"),
    "waves 0": ("{p} --waves 0", "--waves 0"),
    "no such objective": ("{p} --objective fastest", "--objective fastest"),
    "SLO without unit": ("{p} --slo ttft=500", "such as ttft=50ms"),
    "SLO of an unknown latency": ("{p} --slo speed=5ms", "speed is not one of ttft"),
    "SLO of nothing": ("{p} --slo ''", "nothing is not one of"),
    "SLO of 0": ("{p} --slo ttft=0ms", "--slo ttft=0ms"),
    "SLO twice": ("{p} --slo ttft=1s,ttft=2s", "given twice"),
    "confirm boots 0": ("{p} --confirm-boots 0", "--confirm-boots 0"),
    "gain above 1": ("{p} --min-gain 200%", "--min-gain"),
    "budget is a word": ("{p} --budget soon", "--budget soon"),
    "budget without unit": ("{p} --budget 10", "--budget 10: expected a time such as"),
    "start timeout 0": ("{p} --start-timeout 0", "--start-timeout 0"),
    "request timeout is a word": ("{p} --request-timeout never", "--request-timeout never"),
    "KV dtype twice": ("{p} --kv-cache-dtype fp8,fp8", "given twice"),
    "KV dtype empty": ("{p} --kv-cache-dtype auto,", "an empty value"),
    "utilization above 1": ("{p} --gpu-memory-utilization 1.5", "at most 1"),
    "utilization is a word": ("{p} --gpu-memory-utilization most", "most"),
    "utilization range backwards": ("{p} --gpu-memory-utilization 0.9:0.4", "LOW:HIGH"),
    "utilization range of words": ("{p} --gpu-memory-utilization a:b", "LOW:HIGH"),
    "range and a fixed KV cache": (
        "{p} --gpu-memory-utilization 0.4:0.9",
        "--kv-cache-memory-bytes decides",
    ),
    "context of no number": ("{p} --context 1k,long", "--context 1k,long: expected numbers of"),
    "context twice": ("{p} --context 1k,1000", "--context: 1000 is given twice"),
    "context no room": ("{p} --context 8 --max-tokens 8", "--context 8: has no room for"),
    "context beyond": ("{p} --context 1k,64k", "--context 64k is longer than the"),
    "prompts twice": ("{p} --prompts chat,chat", "chat is given twice"),
    "quality of nothing": ("{p} --quality ''", "--quality"),
    "quality of an unknown task": ("{p} --quality nonsuch_task", "Tasks not found: nonsuch_task"),
    "quality tasks missing": ("{p} --quality t --quality-tasks {t}/none", "no such folder"),
    "quality limit 0": ("{p} --quality t --quality-limit 0", "--quality-limit 0"),
    "quality tolerance is a word": ("{p} --quality-tolerance much", "--quality-tolerance much"),
    "quality timeout is a word": ("{p} --quality t --quality-timeout x", "--quality-timeout x"),
    "quality of synthetic acceptance": (
        "{p} --gamma 2 --synthetic-acceptance .5,.4 --quality t",
        "--quality: synthetic",
    ),
    "two drafters": ("{p} --drafter suffix", "ngram and suffix: one at a time"),
    "set without values": ("{p} --set max-num-seqs", "--set max-num-seqs"),
    "set with a bad name": ("{p} --set 'a b=1'", "--set a b=1"),
    "set of gamma": ("{p} --set gamma=1,2", "flag of its own"),
    "set of the port": ("{p} --set port=1,2", "by the tuner itself"),
    "set of what the tuner sets": ("{p} --set speculative_config=a,b", "by the tuner itself"),
    "set of a part of it": ("{p} --set spec-tokens=1,2", "by the tuner itself"),
    "set of a key": ("{p} --set api-key=x", "shut the tuner out"),
    "set twice": ("{p} --set a-b=1 --set a_b=2", "given twice"),
    "server flag of ours": ("{p} --server-arg '--port 80'", "by the tuner itself"),
    "server flag of ours shortened": ("{p} --server-arg '-sc {{}}'", "by the tuner itself"),
    "server without counters": (
        "{p} --server-arg --disable_log_stats",
        "--disable-log-stats: acceptance and preemptions are read",
    ),
    "server flag searched": (
        "{p} --kv-cache-dtype auto,fp8 --server-arg --kv-cache-dtype=fp8",
        "is searched as",
    ),
    "server flag unclosed": ("{p} --server-arg '\"x'", "--server-arg"),
    "env without value": ("{p} --env NAME", "--env: expected NAME=VALUE"),
    "env with a bad name": ("{p} --env 1A=2", "--env 1A: expected NAME=VALUE"),
    "no such MoE folder": ("{p} --moe-config {t}/none", "no such folder"),
    "MoE folder without files": ("{p} --moe-config {t}/empty", "holds no file"),
    "one MoE folder of two": ("{p} --moe-config default,{t}/none", "none: no such folder"),
    "MoE default alone": ("{p} --moe-config default", "name a folder too"),
    "MoE default twice": ("{p} --moe-config default,default", "names one twice"),
    "MoE folder empty": ("{p} --moe-config ''", "no such folder"),
    "MoE as a set": ("{p} --set moe-config=a,b", "use --moe-config"),
    "MoE folder twice over": (
        "{p} --moe-config {t}/moe --env VLLM_TUNED_CONFIG_FOLDER=x",
        "say two things",
    ),
    "rates increase": ("{p} --gamma 2 --synthetic-acceptance .2,.4", "must not increase"),
    "rates are words": ("{p} --gamma 2 --synthetic-acceptance a,b", "--synthetic-acceptance"),
    "too few rates": ("{p} --gamma 0-4 --synthetic-acceptance .5,.4", "2 rates"),
    "no such space": ("{p} --space none", "no space 'none'"),
    "space and gamma": ("{p} --space {t}/s.yaml --gamma 2", "exclude each other"),
    "space without gamma": ("{p} --space {t}/s.yaml", "no parameter gamma"),
    "space with a port": ("{p} --space {t}/port.yaml", "port.yaml: port: is set by the tuner"),
    "space with a bad gamma": ("{p} --space {t}/g.yaml", "gamma"),
    "image with a space": ("{p} --image 'a b'", "--image"),
    "study leads out": ("{p} --study ../x", "--study"),
    "context too long": ("{p} --server-arg '--max-model-len 99999'", "--max-model-len 99999"),
    "out is a file": ("{p} --out {t}/file.txt", "file.txt"),
    "database URL": ("{p} --db nonsense", "nonsense"),
}


@pytest.fixture(scope="module")
def folder(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the cases name."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    (root / "moe").mkdir()
    (root / "moe" / "E=1.json").write_text("{}")
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    (root / "file.txt").write_text("x")
    (root / "never").write_text(f"#!/bin/sh\n[ $1 = --version ] || touch {root}/served\necho 1\n")
    (root / "never").chmod(0o755)
    (root / "void.jsonl").write_text("\n")
    (root / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    head = "name: s\ntitle: t\nsource: u\nparameters:\n  "
    (root / "s.yaml").write_text(f"{head}x: {{values: [1], why: w}}\n")
    (root / "g.yaml").write_text(f"{head}gamma: {{values: [0, lots], why: w}}\n")
    (root / "port.yaml").write_text(
        f"{head}gamma: {{values: [0, 2], why: w}}\n  port: {{values: [1, 2], why: w}}\n"
    )
    other = shutil.copytree(tiny_models.qwen3, root / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 500}))
    return root


LOADS_LM_EVAL = "quality of an unknown task"
"""By day ``test_tasks.py`` asks the same of lm-eval, which takes half a minute to load."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=(pytest.mark.server, pytest.mark.nightly) if name == LOADS_LM_EVAL else ()
        )
        for name in CASES
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str,
    folder: Path,
    tiny_models: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args, words = CASES[name]
    model = str(tiny_models.qwen3)
    args = args.format(t=folder, m=model, p=f"--target {model} --drafter ngram")
    defaults = f" --vllm {folder}/never --db sqlite:///{tmp_path}/a.db --out {tmp_path}/out"
    defaults += f" {SMALL}"
    monkeypatch.chdir(tmp_path)
    given = shlex.split(f"{defaults} {args}")
    refused(monkeypatch, capsys, ["spec", *given], BAD, words)
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.log"))
    assert not (folder / "served").exists()


def test_a_program_that_is_not_there_is_missing(
    folder: Path,
    tiny_models: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"spec --target {tiny_models.qwen3} --drafter ngram --vllm {folder}/absent --force"
    command += f" --db sqlite:///{tmp_path}/a.db --out {tmp_path}/out"
    monkeypatch.setattr("sys.argv", ["autotune", *command.split()])
    # Where memory is short the pair itself is refused, before programs are looked for.
    free = MemoryReading(2**40, 2**40, MemoryKind.CPU, "here")
    monkeypatch.setattr("autotune.serving.make_plan.read_memory", lambda _: free)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == MISSING
    said = capsys.readouterr().err
    assert "no such program" in said.split("\n")[-2]
    assert "Plan" not in said
    assert not list(tmp_path.iterdir()), "nothing was begun"
