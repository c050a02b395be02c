"""The form of a new job, made of its request, which declares help, defaults and choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.util.request import Request, is_secret
from autotune.web.kinds import KINDS, OURS


@dataclass(frozen=True)
class Input:
    """One field of a form.

    Attributes:
        name: of the request's field.
        flag: what the command line calls it.
        text: what it is for.
        kind: ``choice``, ``switch``, ``number``, ``lines`` or ``text``.
        default: what it is if nothing is given, as text.
        value: what stands in it.
        choices: of a choice.
        least: of a number.
        most: of a number.
        required: something has to be given.
        operator: only what the service's operator allowed goes.
    """

    name: str
    flag: str
    text: str
    kind: str
    default: str
    value: str
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    required: bool = False
    operator: bool = False


def form(kind: str, given: Mapping[str, str]) -> list[tuple[str, list[Input]]]:
    """Make the fields of a kind of job, by panel.

    Args:
        kind: one of :data:`KINDS`.
        given: values to begin with.
    """
    request = KINDS[kind]
    schema = request.model_json_schema()["properties"]
    panels: dict[str, list[Input]] = {"": []}
    for name, field in request.declared():
        if name in OURS or is_secret(field):
            continue
        made = _input(request, name, schema[name], given.get(name), required=field.is_required())
        panels.setdefault(str(schema[name].get("panel", "")), []).append(made)
    found = [(title, fields) for title, fields in panels.items() if fields]
    # Stable: what goes with another way to start comes last, and is folded there.
    return sorted(found, key=lambda panel: panel[0].startswith("With "))


def _input(
    request: type[Request],
    name: str,
    schema: Mapping[str, Any],
    given: str | None,
    *,
    required: bool,
) -> Input:
    parts = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    known = {**parts[0], **schema}
    kinds = {"boolean": "switch", "integer": "number", "array": "lines"}
    default = known.get("default")
    shown = "" if default is None else str(default)
    if isinstance(default, list):
        shown = "\n".join(map(str, default))
    kind = "choice" if "enum" in known else kinds.get(str(known.get("type")), "text")
    unit = f" In {known['unit']}." if "unit" in known else ""
    said = " ".join(filter(None, [known["description"], known.get("note")]))
    return Input(
        name=name,
        flag=request.flag_name(name),
        text=said.replace("`", "") + unit,
        kind=kind,
        default=shown,
        value=shown if given is None else given,
        choices=tuple(map(str, known.get("enum", ()))),
        least=known.get("minimum"),
        most=known.get("maximum"),
        required=required,
        operator=known.get("reach") == "operator",
    )
