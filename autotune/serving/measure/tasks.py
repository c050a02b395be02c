"""Tasks of lm-eval (EleutherAI's lm-evaluation-harness) against a server that runs already.

lm-eval is a process of its own, under ``serving/server/supervisor.py``, so that it ends with us and
within its time. Its results file is ``results_*.json``: ``results`` by task with ``METRIC,FILTER``
and ``METRIC_stderr,FILTER``, and ``higher_is_better`` by task and metric (lm-eval 0.4.13
``lm_eval/evaluator.py``).
"""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.core import BadInputError, MissingEnvironmentError, Trial
from autotune.serving.server.process import child_environment
from autotune.serving.server.server import Server
from autotune.serving.server.supervisor import SUPERVISOR
from autotune.util import edge
from autotune.util.programs import run_quietly

_CHECK_S = 300.0
_LINE_CHARS = 300
_CONCURRENT = 8


@dataclass(frozen=True)
class Tasks:
    """What lm-eval is to evaluate.

    Attributes:
        names: of the tasks.
        tolerance: by how much a score may fall, in the unit of the score (0.02 is two points of
            a hundred).
        limit: examples of a task at most; None takes all.
        folder: with further tasks.
        timeout_s: wall seconds that one evaluation may take.
    """

    names: tuple[str, ...]
    tolerance: float
    limit: int | None
    folder: Path | None
    timeout_s: float

    @property
    def key(self) -> tuple[str, ...]:
        """What two scores must share to be compared."""
        return (*self.names, f"limit={self.limit}", f"folder={self.folder}")


def check_tasks(tasks: Tasks) -> None:
    """See that lm-eval is there and knows the tasks.

    Raises:
        MissingEnvironmentError: it is not installed, or cannot be run.
        BadInputError: it knows no such task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingEnvironmentError(
            f"--quality: lm-eval is not installed for {sys.executable}; install autotune with its "
            "extra, in a clone: pip install '.[quality]'"
        )
    command = [sys.executable, "-P", "-m", "lm_eval", "validate", "--tasks", ",".join(tasks.names)]
    try:
        ran = run_quietly([*command, *_folder(tasks)], _CHECK_S, child_environment({}))
    except subprocess.TimeoutExpired as error:
        raise MissingEnvironmentError(f"--quality: lm-eval took over {_CHECK_S:g} s") from error
    if ran.returncode:
        said = _last_line(ran.stdout + ran.stderr)
        raise BadInputError(f"--quality {','.join(tasks.names)}: {said}")


def _folder(tasks: Tasks) -> list[str]:
    return ["--include_path", str(tasks.folder)] if tasks.folder is not None else []


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["lm-eval said nothing"])[-1][:_LINE_CHARS]


def evaluate(server: Server, tasks: Tasks, *, chat: bool, out: Path) -> dict[str, Any]:
    """Run the tasks; JSON values: ``scores``, or an ``error`` with the telling line.

    Args:
        server: answers.
        tasks: what to run.
        chat: whether prompts go through the server's chat template.
        out: a folder for lm-eval's output, made if it is not there.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = "chat/completions" if chat else "completions"
    kind = f"local-{path.replace('/', '-')}"
    given = {"model": server.model, "base_url": f"{server.url}/v1/{path}"}
    given |= {"num_concurrent": str(_CONCURRENT), "max_retries": "2"}
    command = [sys.executable, "-P", "-m", "lm_eval", "run", "--model", kind]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in given.items())]
    command += ["--tasks", ",".join(tasks.names), "--output_path", str(out), *_folder(tasks)]
    command += ["--apply_chat_template"] if chat else []
    command += ["--limit", str(tasks.limit)] if tasks.limit is not None else []
    before = set(out.rglob("results_*.json"))
    supervisor = [sys.executable, "-P", SUPERVISOR, "--grace", "5", "--"]
    log = out / "lm-eval.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(  # noqa: S603
            [*supervisor, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            env=child_environment({}),
        ) as process,
    ):
        code = _wait(process, tasks.timeout_s)
    made = sorted(set(out.rglob("results_*.json")) - before)
    if code is None:
        return {"error": f"lm-eval did not end within {tasks.timeout_s:g} s", "log": str(log)}
    if code or not made:
        said = _last_line(edge.read_ends(log, 0, edge.MIB).decode("utf-8", "replace"))
        return {"error": f"lm-eval ended with status {code}: {said}", "log": str(log)}
    try:
        return {"scores": read_scores(edge.read_json(made[-1], edge.LARGE)), "log": str(log)}
    except (OSError, edge.EdgeError, LookupError, TypeError, AttributeError) as error:
        return {
            "error": f"lm-eval's results cannot be read: {error}"[:_LINE_CHARS],
            "log": str(log),
        }


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """Its exit status; None where it had to be ended, which closing its input does."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


def read_scores(document: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """``value``, ``stderr`` and ``sign`` (-1 where less is better) by ``TASK METRIC,FILTER``.

    A standard error that lm-eval does not know is 0.

    Raises:
        LookupError, TypeError: not lm-eval's format.
    """
    found = {}
    for task, values in document["results"].items():
        better = document.get("higher_is_better", {}).get(task, {})
        for name, value in values.items():
            metric, comma, kind = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            found[f"{task} {name}"] = {
                "value": float(value),
                "stderr": float(error) if isinstance(error, int | float) else 0.0,
                "sign": -1.0 if better.get(metric) is False else 1.0,
            }
    return found


def scores_of(trial: Trial) -> dict[str, dict[str, float]]:
    """The scores of a trial; empty where there are none."""
    found: dict[str, dict[str, float]] = trial.measurement.details.get("tasks", {}).get(
        "scores", {}
    )
    return found


def fallen(before: Trial, after: Trial, tolerance: float) -> list[str]:
    """What speaks against ``after``: scores that fell by more than the tolerance; empty if none.

    A fall counts when it exceeds the tolerance by more than one standard error of the difference,
    the two runs taken as independent, which overstates it: the examples are the same.
    """
    ours, theirs = scores_of(after), scores_of(before)
    if not ours or ours.keys() != theirs.keys():
        return [str(after.measurement.details.get("tasks", {}).get("error", "was not evaluated"))]
    said = []
    for name, was in theirs.items():
        now = ours[name]
        fall = was["sign"] * (was["value"] - now["value"])
        error = math.hypot(was["stderr"], now["stderr"])
        if fall - tolerance > error:
            said.append(
                f"{name} fell from {was['value']:.3f} to {now['value']:.3f} ± {error:.3f}, by more "
                f"than {tolerance:g}"
            )
    return said
