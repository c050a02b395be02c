"""Measure a list of server settings exhaustively, one fresh boot after another.

    python -m benchmarks.record_grid CONFIG.json OUT.json [SECONDS]

What a search must find is known only where every setting was measured. Every setting is booted
``rounds`` times and loaded while nothing else runs on its GPU; ``lanes`` (each an environment, such
as ``{"CUDA_VISIBLE_DEVICES": "1"}``; one without any by default) work side by side. CONFIG holds
``target``, ``drafter``, ``method``, ``synthetic`` (acceptance by position), ``server_args``,
``env``, ``rounds``, ``lanes``, ``settings`` (each ``name``, ``gamma``, ``args``, ``env``) and
``loads`` (each ``name``, ``prompts``, ``concurrency``, ``max_tokens``, ``repeats``, ``waves``).
OUT is written anew after every boot; what it already holds is not measured again. No boot
begins after SECONDS.
"""

from __future__ import annotations

import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any

from autotune.core import Candidate, Job
from autotune.export.files import write_whole
from autotune.machine.environment import environment
from autotune.serving.measure.cell import measure_whole
from autotune.serving.measure.load import LoadOptions, UnservedError
from autotune.serving.measure.prompts import load_prompts, prompts_key
from autotune.serving.measure.wire import Wire
from autotune.serving.recipe import Recipe
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.server import Server, ServerFailedError, ServeSettings, start

START_S = 420.0
LOOKED_UP = re.compile(r"Using (?:default MoE config|configuration from)[^\n]*")


def settings_of(config: dict[str, Any], setting: dict[str, Any]) -> ServeSettings:
    recipe = Recipe(
        config["target"],
        config["method"],
        config["drafter"],
        tuple(config["synthetic"]),
        (*config["server_args"], *setting.get("args", [])),
        config.get("env", {}) | setting.get("env", {}),
    )
    return ServeSettings(
        recipe.target,
        recipe.speculative(setting["gamma"]),
        extra_args=recipe.server_args,
        env=recipe.env,
    )


def scenario_of(config: dict[str, Any], load: dict[str, Any]) -> SpecScenario:
    prompts = load_prompts(load["prompts"])
    return SpecScenario(
        target=config["target"],
        drafter=config["drafter"],
        prompts=load["prompts"],
        prompts_key=prompts_key(prompts),
        concurrency=tuple(load["concurrency"]),
        max_tokens=load["max_tokens"],
        ignore_eos=True,
        chat=True,
        repeats=load["repeats"],
        waves=load["waves"],
        objective="geomean",
    )


@dataclass
class Recorder:
    """Boots, measures and writes; its lanes share it."""

    config: dict[str, Any]
    out: Path
    result: dict[str, Any]
    until: float
    lock: Lock = field(default_factory=Lock)

    def lane(self, env: dict[str, str], todo: SimpleQueue[tuple[int, dict[str, Any]]]) -> None:
        while time.monotonic() < self.until:
            try:
                turn, setting = todo.get_nowait()
            except Empty:
                return
            try:
                self.boot(turn, setting | {"env": setting.get("env", {}) | env})
            except BaseException:
                self.until = 0.0  # for the other lanes
                raise

    def boot(self, turn: int, setting: dict[str, Any]) -> None:
        name = setting["name"]
        log = self.out.parent / "logs" / f"{name}-{turn}.log"
        said: dict[str, Any] = {"setting": name, "round": turn, "seconds": None, "failed": None}
        rows: list[dict[str, Any]] = []
        began = time.monotonic()
        try:
            with start(LocalLauncher(), settings_of(self.config, setting), log, START_S) as server:
                said["seconds"] = server.start_seconds
                loads = self.config["loads"]
                rows.extend(measured(server, self.config, load, name, turn) for load in loads)
        except (ServerFailedError, UnservedError) as error:
            said["failed"] = str(error)
        said["moe_config"] = LOOKED_UP.findall(log.read_text(errors="replace"))
        said["boot_and_loads_s"] = time.monotonic() - began
        with self.lock:
            self.result["boots"].append(said)
            self.result["measured"] += rows
            write_whole(self.out, json.dumps(self.result, indent=1).encode())
        rates = {
            row["load"]: {c: round(v["tok_s"], 1) for c, v in row["levels"].items()} for row in rows
        }
        print(f"{name}-{turn}", said["seconds"], said["failed"] or "", rates, flush=True)


def measured(
    server: Server, config: dict[str, Any], load: dict[str, Any], name: str, turn: int
) -> dict[str, Any]:
    options = LoadOptions(load_prompts(load["prompts"]))
    job = Job(Candidate.of({}), scenario_of(config, load))
    served = measure_whole(Wire(server), job, options)
    row = {"setting": name, "load": load["name"], "round": turn, **served.details}
    return row | {"samples_us": served.samples, "outputs": len(set(row["outputs"]))}


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    config = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    until = time.monotonic() + float(sys.argv[3] if len(sys.argv) > 3 else "inf")
    result: dict[str, Any] = {
        "command": "python -m benchmarks.record_grid CONFIG.json OUT.json",
        "config": config,
        "environment": environment(),
        "boots": [],
        "measured": [],
    }
    if out.exists():
        earlier = json.loads(out.read_text())
        if (earlier["config"], earlier["environment"]) != (config, result["environment"]):
            raise SystemExit(f"{out} is of another CONFIG or machine; name a new file")
        result |= {key: earlier[key] for key in ("boots", "measured")}
    done = {(boot["setting"], boot["round"]) for boot in result["boots"]}
    todo: SimpleQueue[tuple[int, dict[str, Any]]] = SimpleQueue()
    settings = config["settings"]
    for turn in range(config["rounds"]):
        # Rotated, so that no setting always follows the same one.
        for setting in settings[turn % len(settings) :] + settings[: turn % len(settings)]:
            if (setting["name"], turn) not in done:
                todo.put((turn, setting))
    recorder = Recorder(config, out, result, until)
    lanes = config.get("lanes", [{}])
    with ThreadPoolExecutor(len(lanes)) as pool:
        try:
            for _ in pool.map(lambda env: recorder.lane(env, todo), lanes):
                pass
        except BaseException:
            recorder.until = 0.0
            raise


if __name__ == "__main__":
    main()
