"""Give a server's answers of every hostile kind to the client, and keep what came of each.

Usage: ``python -m benchmarks.hostile_inputs > benchmarks/results/hostile/servers.tsv``
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from autotune.core import AutotuneError
from autotune.serving.measure.client import Load, run_load
from autotune.serving.measure.prompts import Prompt
from autotune.serving.running import server as running
from autotune.serving.server.launchers import UrlLauncher
from tests.serving import hostile_server as hostile

PROMPTS = (Prompt.of("Q"),)
running.LOOK_S = 2.0


def inputs() -> dict[str, tuple[str, hostile.Answer]]:
    """What is answered at which path, by name."""
    found: dict[str, tuple[str, hostile.Answer]] = {}
    for path in ("/v1/models", "/v1/chat/completions", "/metrics", "/version"):
        for name, make in hostile.TRANSPORT.items():
            if name not in {"gzip, twice", "gzip bomb", "huge line"} or path == "/metrics":
                found[f"{path}: {name}"] = (path, make())
    for name, number in hostile.NUMBERS.items():
        for field in ("prompt_tokens", "completion_tokens"):
            answer = hostile.usage_text(number, field)
            found[f"{field}: {name}"] = ("/v1/chat/completions", answer)
        found[f"max_model_len: {name}"] = ("/v1/models", hostile.models_text('"m"', number))
    for name, text in hostile.TEXTS.items():
        found[f"model: {name}"] = ("/v1/models", hostile.models_text(text))
        body = f'{{"version": {text}}}'.encode()
        found[f"version: {name}"] = ("/version", hostile.response(body))
    return found


def outcome(path: str, answer: hostile.Answer) -> tuple[str, str]:
    """How it ended, and the line that says so; a name with ``!`` is a defect."""
    with hostile.serving({path: answer}) as server:
        try:
            if path == "/v1/chat/completions":
                load = Load(server.url, "m", PROMPTS, 1, 1, 8, timeout_s=2.0)
                errors = run_load(load).errors()
                return ("failed request", errors[0]) if errors else ("answered", "")
            found = running.look(UrlLauncher(server.url), PROMPTS, None)
            return "looked", repr((found.model[:40], found.version, found.context))
        except AutotuneError as error:
            return f"exit {int(error.exit_code)}", str(error)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            return "! traceback", f"{type(error).__name__}: {error}"
        finally:
            server.stopped.set()


def main() -> None:
    def one(item: tuple[str, tuple[str, hostile.Answer]]) -> tuple[str, str, str, float]:
        began = time.monotonic()
        end, line = outcome(*item[1])
        return item[0], end, line, time.monotonic() - began

    with ThreadPoolExecutor(6) as pool:
        for name, end, line, seconds in pool.map(one, inputs().items()):
            said = ascii(line[:120])[1:-1]
            sys.stdout.write(f"{name}\t{end}\t{seconds:.1f} s\t{said}\n")


if __name__ == "__main__":
    main()
