"""This module makes a Typer command of a request: each field is a flag or an argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from autotune.cli.common import this_command
from autotune.util.request import Request, extra, is_secret

R = TypeVar("R", bound=Request)


def add_command(app: typer.Typer, request: type[R], run: Callable[[R], None]) -> None:
    """Add the command named like ``run``, which is given the request that the flags describe.

    Its help is the model's docstring.
    """
    secret = [request.flag_name(name) for name, field in request.declared() if is_secret(field)]

    def call(typer_context: typer.Context, **values: Any) -> None:
        given = {name: value for name, value in values.items() if _is_typed(typer_context, name)}
        if "command" in request.model_fields:
            given["command"] = this_command(secret)
        run(request.model_validate(given))

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("typer_context", kind, annotation=typer.Context)]
    parameters += [_parameter(request, name, field) for name, field in request.declared()]
    call.__dict__["__signature__"] = inspect.Signature(parameters)
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    examples = "\n\n".join(["For example:", *request.examples])
    app.command(run.__name__, help=inspect.getdoc(request), epilog=examples)(call)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _parameter(request: type[Request], name: str, field: FieldInfo) -> inspect.Parameter:
    """Make of the field a parameter of the function that Typer reads."""
    more, kind = extra(field), plain(field.annotation)
    shown: dict[str, Any] = {"help": field.description, "rich_help_panel": more.get("panel")}
    shown |= {key: more[key] for key in ("metavar", "hidden") if key in more}
    many = get_origin(kind) is list
    default = inspect.Parameter.empty if field.is_required() else field.default
    if many and not field.is_required():
        kind, default = kind | None, None
    if more.get("positional"):
        info: Any = typer.Argument(**shown)
    else:
        names = [declaration(request.flag_name(name), field), more.get("short")]
        info = typer.Option(*filter(None, names), **shown)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def declaration(flag: str, field: FieldInfo) -> str:
    """Declare the flag as Typer wants it: one that is on by default can be switched off."""
    return f"{flag}/{flag.replace('--', '--no-', 1)}" if field.default is True else flag


def plain(annotation: Any) -> Any:
    """Strip a type of its validators; ``tuple[str, ...]`` becomes a list for Typer.

    Raises:
        TypeError: a type that the command line does not have.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return plain(parts[0])
    if origin in {Union, UnionType}:
        (only,) = (plain(part) for part in parts if part is not NoneType)
        return only | None
    if origin is tuple:
        return list[plain(parts[0])]  # type: ignore[misc]
    if annotation not in {str, int, bool, Path}:
        raise TypeError(f"{annotation}: no flag can be of this type")
    return annotation
