"""`docs/reference/cli.md` names every command and flag, and is what the requests say today."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

import autotune
from autotune.cli import COMMANDS, app, reference
from autotune.core import AutotuneError, ExitCode
from autotune.util.request import Request

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
MODELS = {run.__name__: request for request, run in COMMANDS}


def section(command: str) -> str:
    """What the page says of a command."""
    return PAGE.read_text().partition(f"\n## autotune {command}\n")[2].partition("\n## ")[0]


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == reference.page(), "a flag has changed: make reference"


def test_every_command_of_the_program_is_on_it() -> None:
    group = typer.main.get_command(app)
    assert list(getattr(group, "commands", {})) == list(MODELS)
    for name in MODELS:
        assert f"| [`autotune {name}`](#autotune-{name}) |" in PAGE.read_text()
        assert section(name)


@pytest.mark.parametrize("command", MODELS)
def test_every_flag_that_typer_takes_is_on_it(command: str) -> None:
    group = typer.main.get_command(app)
    params = getattr(group, "commands", {})[command].params
    listed = set(
        re.findall(r"^\| `(--[\w-]+|[A-Z]+)`(?:, `(--no-[\w-]+|-\w)`)? \|", section(command), re.M)
    )
    names = {name for pair in listed for name in pair if name}
    expected = set()
    for param in params:
        argument = isinstance(param, typer.core.TyperArgument)
        expected |= {param.name.upper()} if argument else {*param.opts, *param.secondary_opts}
    assert names == expected - {"--help"}


@pytest.mark.parametrize("command", MODELS)
def test_defaults_and_requirements_are_those_of_the_model(command: str) -> None:
    model = MODELS[command]
    rows = {line.split("`")[1]: line for line in section(command).splitlines() if "| `" in line}
    for name, field in model.declared():
        row = rows[name.upper()] if name.upper() in rows else rows[model.flag_name(name)]
        last = row.split(" | ")[-1].removesuffix(" |").strip()
        if field.is_required():
            assert last == "*required*"
        elif field.default not in {None, ()}:
            switch = isinstance(field.default, bool)
            shown = ("on" if field.default else "off") if switch else f"`{field.default}`"
            assert last == shown


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_examples_are_commands_that_can_be_given(model: type[Request]) -> None:
    assert model.examples
    for example in model.examples:
        program, command, *words = shlex.split(example)
        assert (program, MODELS[command]) == ("autotune", model)
        group = typer.main.get_command(app)
        context = getattr(group, "commands", {})[command].make_context(command, words)
        given = {k: v for k, v in context.params.items() if v is not None}
        defaults = {name: field.default for name, field in model.declared()}
        model.model_validate({k: v for k, v in given.items() if v != defaults.get(k)})


def test_exit_codes_are_all_there() -> None:
    assert list(reference.EXIT_CODES) == list(ExitCode)
    for code in ExitCode:
        assert f"| {int(code)} | " in section_of_codes()
    errors = AutotuneError.__subclasses__()
    assert {error.exit_code for error in errors} <= set(reference.EXIT_CODES)


def test_variables_that_are_read_are_all_there() -> None:
    """What a child process is given is set, not read, or passed on as it is."""
    package = Path(autotune.__file__).parent
    source = "\n".join(path.read_text() for path in package.rglob("*.py"))
    read = set(re.findall(r"(?:environ\.get|exported|getenv)\(\"([A-Z_]+)\"", source))
    requests = {name for name in read if name.startswith(("HTTP_", "REQUEST_"))}  # of WSGI
    assert read - {"PYTHONPATH"} - requests <= set(reference.VARIABLES)
    assert {"AUTOTUNE_HEADER", "CUDA_VISIBLE_DEVICES"} <= read
    for name in reference.VARIABLES:
        assert f"| `{name}` | " in PAGE.read_text()


def section_of_codes() -> str:
    return PAGE.read_text().partition("\n## Exit codes\n")[2]
