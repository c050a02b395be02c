"""``autotune explain``: what a server's log says, on one screen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from autotune.cli.common import print_json
from autotune.cli.consoles import out
from autotune.cli.requests import Explain
from autotune.core import BadInputError, ExitCode
from autotune.util.edge import EdgeError, bad_input

if TYPE_CHECKING:
    from autotune.serving.logs.facts import Facts
    from autotune.serving.server.explain import Explanation

_COLOURS = {"started": "green", "failed": "red"}
_FEW = 4


def explain(request: Explain) -> None:
    """Print what the log says.

    Raises:
        BadInputError: it cannot be read, or is no server's log.
        typer.Exit: the server failed, with the code of a flagged one.
    """
    from autotune.serving.server import explain as explaining  # noqa: PLC0415 - slow import

    data = _read(request.log)
    try:
        found = explaining.explain(data)
    except BadInputError as error:
        raise BadInputError(f"{request.log}: {error}") from None
    if request.as_json:
        print_json(found.as_json())
    else:
        for name, text in _rows(found):
            colour = _COLOURS.get(text.partition(":")[0], "default")
            shown = f"[bold]{name:<12}[/bold] [{colour}]{escape(text)}[/{colour}]"
            out.print(shown, soft_wrap=True, highlight=False)
    if found.failed:
        raise typer.Exit(ExitCode.FLAGGED)


def _read(log: str) -> bytes:
    from autotune.serving.logs.read import read_log, read_stream  # noqa: PLC0415

    try:
        return read_stream(sys.stdin.fileno()) if log == "-" else read_log(Path(log))
    except (EdgeError, OSError) as error:
        raise bad_input(log, error) from None


def _rows(found: Explanation) -> list[tuple[str, str]]:
    facts, failure = found.facts, found.kind
    rows = [("Server", found.state)]
    if failure is not None:
        rows += [("Cause", found.cause), ("Class", f"{failure}")]
        rows += [("What to do", found.advice)]
    elif found.cause:
        rows.append(("Last error", f"{found.cause} (the server goes on)"))
    versions = (("vLLM", facts.vllm), ("Triton", facts.triton), ("on", facts.device))
    told = [f"{name} {value}" for name, value in versions if value]
    rows += [("Model", facts.model or ""), ("Versions", ", ".join(told))]
    rows += _moe(facts)
    rows += [("MoE kernel", ", ".join(facts.moe_backends)), ("fp8", ", ".join(facts.fp8[:_FEW]))]
    rows += [("Graphs", _graphs(facts)), ("Speculation", _speculation(facts))]
    rows.append(("KV cache", _kv(facts)))
    return [(name, text) for name, text in rows if text]


def _moe(facts: Facts) -> list[tuple[str, str]]:
    own = set(facts.overridden)
    rows = [("MoE taken", f"{path}{' (yours)' if path in own else ''}") for path in facts.moe_used]
    rows = rows[:_FEW]
    rows += [("MoE missing", name) for name in facts.asked_for[:_FEW]]
    if facts.asked_for:
        rows.append(("", "a missing one is made by: autotune moe --device auto --model MODEL"))
    if facts.asked_for and facts.folders:
        where = ", ".join(facts.folders[:_FEW])
        hint = f"vLLM looked for these names in {where}: a file of another name there is not read"
        rows.append(("", hint))
    return rows


def _graphs(facts: Facts) -> str:
    took = [] if facts.graph_gib is None else [f"{facts.graph_gib:g} GiB"]
    return "; ".join([*took, *(text[:160] for text in facts.graphs[:_FEW])])


def _speculation(facts: Facts) -> str:
    if facts.method is None and not facts.drafted:
        return ""
    said = f"{facts.method or 'on'}"
    said += f", gamma {facts.gamma}" if facts.gamma is not None else ""
    said += f", drafter {facts.drafter}" if facts.drafter else ""
    if facts.drafted:
        said += f"; {facts.accepted} of {facts.drafted} drafted tokens accepted"
        said += f" ({facts.accepted / facts.drafted:.1%}), {facts.acceptance_length:.2f} a step"
    return said


def _kv(facts: Facts) -> str:
    parts = [f"{facts.kv_tokens:,} tokens"] if facts.kv_tokens else []
    parts += [f"{facts.kv_gib:g} GiB"] if facts.kv_gib is not None else []
    if facts.concurrency is not None and facts.context:
        parts.append(f"{facts.concurrency:g} requests of {facts.context:,} tokens at once")
    return ", ".join(parts)
