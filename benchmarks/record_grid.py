"""Measure a list of server settings exhaustively, all of them resident on one GPU at once.

    python -m benchmarks.record_grid CONFIG.json OUT.json

What a search must find is known only where every setting was measured. Starting a server takes
minutes and measuring it seconds, so all are started side by side, each with its own share of the
memory, and then loaded one at a time, in turns, while the others idle. CONFIG holds ``target``,
``drafter``, ``method``, ``synthetic`` (acceptance by position), ``server_args``, ``env``,
``rounds``, ``settings`` (each ``name``, ``gamma``, ``args``, ``env``) and ``loads`` (each ``name``,
``prompts``, ``concurrency``, ``max_tokens``, ``repeats``, ``waves``). OUT is written anew after
every measurement. In the end the commands of ``after`` (each ``setting``, ``command``) are run,
with the server's address for ``{url}``.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from autotune.environment import environment
from autotune.files import write_whole
from autotune.spec.launchers import LocalLauncher
from autotune.spec.load import LoadOptions, measure_server
from autotune.spec.prompts import load_prompts, prompts_key
from autotune.spec.recipe import Recipe
from autotune.spec.scenario import SpecScenario
from autotune.spec.server import Server, ServerFailedError, ServeSettings, start

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


def started(config: dict[str, Any], logs: Path, stack: ExitStack) -> dict[str, Any]:
    """Servers by name, or the line that says why one does not serve."""

    def one(setting: dict[str, Any]) -> Server | str:
        try:
            log = logs / f"{setting['name']}.log"
            return start(LocalLauncher(), settings_of(config, setting), log, START_S)
        except ServerFailedError as error:
            return str(error)

    with ThreadPoolExecutor(len(config["settings"])) as pool:
        found = list(pool.map(one, config["settings"]))
    servers = {s["name"]: server for s, server in zip(config["settings"], found, strict=True)}
    for server in found:
        if isinstance(server, Server):
            stack.enter_context(server)
    return servers


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    logs = out.parent / "logs"
    began = time.monotonic()
    result: dict[str, Any] = {
        "command": "python -m benchmarks.record_grid CONFIG.json OUT.json",
        "config": config,
        "environment": environment(),
        "starts": {},
        "measured": [],
    }
    with ExitStack() as stack:
        servers = started(config, logs, stack)
        for name, server in servers.items():
            text = (logs / f"{name}.log").read_text(errors="replace")
            result["starts"][name] = {
                "seconds": server.start_seconds if isinstance(server, Server) else None,
                "failed": None if isinstance(server, Server) else server,
                "moe_config": re.findall(
                    r"Using (?:default MoE config|configuration from)[^\n]*", text
                ),
            }
            print(name, result["starts"][name], flush=True)
        alive = [name for name, server in servers.items() if isinstance(server, Server)]
        for turn in range(config["rounds"]):
            # Rotated, so that no setting always follows the same one.
            for name in alive[turn % len(alive) :] + alive[: turn % len(alive)]:
                for load in config["loads"]:
                    options = LoadOptions(load_prompts(load["prompts"]))
                    served = measure_server(servers[name], scenario_of(config, load), options)
                    row = {"setting": name, "load": load["name"], "round": turn, **served.details}
                    row |= {"samples_us": served.samples, "outputs": len(set(row["outputs"]))}
                    result["measured"].append(row)
                    rates = {c: round(v["tok_s"], 1) for c, v in row["levels"].items()}
                    print(
                        f"{time.monotonic() - began:.0f} s", name, load["name"], rates, flush=True
                    )
                    result["seconds"] = time.monotonic() - began
                    write_whole(out, json.dumps(result, indent=1).encode())
        for then in config.get("after", []):
            if then["setting"] in alive:
                url = servers[then["setting"]].url
                command = [part.replace("{url}", url) for part in then["command"]]
                print(shlex.join(command), flush=True)
                subprocess.run(command, check=False)


if __name__ == "__main__":
    main()
