"""A flag is declared once: command line, JSON and Python make the same request, or refuse alike."""

from __future__ import annotations

import contextlib
import json
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from autotune.cli import COMMANDS, build, requests
from autotune.core import BadInputError
from autotune.kernels.request import EFFORTS, SAMPLERS, MoeRequest
from autotune.propose import proposers
from autotune.serving.request import SpecRequest
from autotune.util.request import Duration, Request, Texts, extra, flag

Command = Callable[..., tuple[int, str, str]]
MODELS = {run.__name__: request for request, run in COMMANDS}


def arguments(request: type[Request], values: dict[str, Any]) -> list[str]:
    """What a person would type for these values of JSON."""
    words = []
    for name, value in values.items():
        field = request.model_fields.get(name)
        written = request.flag_name(name) if field else f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if field is not None and extra(field).get("positional"):
                words.append(str(one))
            elif isinstance(one, bool):
                words += [written] if one else []
            else:
                words.append(f"{written}={one}")
    return words


def is_optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


# ------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(("request_", "run"), COMMANDS, ids=MODELS)
@pytest.mark.parametrize("width", [80, 120])
def test_every_command_has_help(
    request_: type[Request],
    run: Callable[..., None],
    width: int,
    in_process: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, shown, err = in_process(run.__name__, "--help")
    assert (code, err) == (0, "")
    assert f"autotune {run.__name__} [OPTIONS]" in shown
    assert str(request_.__doc__).splitlines()[0][:60] in shown
    assert max(map(len, shown.splitlines())) <= width
    for name, field in request_.declared():
        positional = extra(field).get("positional")
        assert (name if positional else request_.flag_name(name)) in shown
        assert (panel := extra(field).get("panel")) is None or f"─ {panel} ─" in shown
        if not positional:  # wrapped to the width: the first word is enough
            assert str(field.description).split()[0] in shown
    listed = in_process("--help")[1]
    assert f" {run.__name__} " in listed


@pytest.mark.parametrize("request_", MODELS.values(), ids=MODELS)
def test_every_flag_says_what_it_is_for(request_: type[Request]) -> None:
    for name, field in request_.declared():
        assert str(field.description)[-1] in ".?", name
        assert field.is_required() or field.default is not None or is_optional(field.annotation)
    assert request_.__doc__


# ------------------------------------------------------------------------ the same as from a shell

GB10: dict[str, Any] = {"device": "gb10"}
PAIR: dict[str, Any] = {"target": "m", "drafter": "ngram"}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("moe", {}),
    ("moe", GB10 | {"seed": "x"}),
    ("moe", GB10 | {"seed": -1}),
    ("moe", GB10 | {"seed": 2**32}),
    ("moe", GB10 | {"workers": 0}),
    ("moe", GB10 | {"effort": "max"}),
    ("moe", GB10 | {"sampler": "grid"}),
    ("moe", GB10 | {"budget": "soon"}),
    ("moe", GB10 | {"budget": 10}),
    ("moe", GB10 | {"min_gain": "200%"}),
    ("moe", GB10 | {"batch_sizes": "0"}),
    ("moe", GB10 | {"batch_sizes": "8,8"}),
    ("moe", GB10 | {"gamma": "65"}),
    ("moe", GB10 | {"gamma": "64", "concurrency": "65536"}),
    ("moe", GB10 | {"memory_limit": "1G5"}),
    ("moe", GB10 | {"study": "../x"}),
    ("moe", GB10 | {"model": "m", "experts": 8}),
    ("moe", GB10 | {"layer": "mtp", "experts": 8}),
    ("moe", GB10 | {"nonsense": 1}),
    ("spec", {}),
    ("spec", {"drafter": "ngram"}),
    ("spec", {"target": "m"}),
    ("spec", {"target": "m", "gamma": "0,2"}),
    ("spec", PAIR | {"drafter": ["ngram", "suffix"]}),
    ("spec", PAIR | {"gamma": "6-2"}),
    ("spec", PAIR | {"gamma": 65}),
    ("spec", PAIR | {"kv_cache_dtype": "auto,"}),
    ("spec", PAIR | {"gpu_memory_utilization": "1.5"}),
    ("spec", PAIR | {"gpu_memory_utilization": "0.9:0.4"}),
    ("spec", PAIR | {"context": 100, "gpu_memory_utilization": "0.4:0.9"}),
    ("spec", PAIR | {"set": ["max-num-seqs"]}),
    ("spec", PAIR | {"set": ["gamma=1"]}),
    ("spec", PAIR | {"space": "s", "set": ["a=1"]}),
    ("spec", PAIR | {"concurrency": "0"}),
    ("spec", PAIR | {"max_tokens": 1}),
    ("spec", PAIR | {"repeats": 1001}),
    ("spec", PAIR | {"objective": "fastest"}),
    ("spec", PAIR | {"slo": "ttft=500"}),
    ("spec", PAIR | {"quality_limit": 0}),
    ("spec", PAIR | {"quality_timeout": "x"}),
    ("spec", PAIR | {"server_arg": ['"x']}),
    ("spec", PAIR | {"env": ["1A=2"]}),
    ("spec", PAIR | {"env": ["VLLM_API_KEY=k"]}),
    ("spec", PAIR | {"synthetic_acceptance": ".2,.4"}),
    ("spec", PAIR | {"vllm": ""}),
    ("spec", PAIR | {"image": "a b"}),
    ("spec", PAIR | {"gpus": "all"}),
    ("spec", PAIR | {"launcher": "podman"}),
    ("spec", PAIR | {"launcher": "docker"}),
    ("spec", PAIR | {"launcher": "docker", "image": "i", "gpus": "a b"}),
    ("spec", {"launcher": "url"}),
    ("spec", {"launcher": "url", "url": "http://h", "gamma": "2"}),
    ("spec", {"launcher": "url", "url": "http://h", "target": ["a", "b"]}),
    ("verify", {}),
    ("verify", {"files": ["f"], "workers": 1025}),
    ("compare", {"first": "a"}),
    ("compare", {"first": "a", "second": "b", "landscape": "l", "study": "s"}),
    ("export", {"study": "s"}),
    ("export", {"study": "s", "to": "moon"}),
    ("export", {"study": "s", "to": "vllm"}),
    ("export", {"study": "s", "to": "folder", "cuda": "13"}),
    ("export", {"study": "s", "to": "vllm", "repo": "r", "model_name": " "}),
    ("report", {"study": "s", "min_gain": "much"}),
    ("dashboard", {"port": 65536}),
]


@pytest.mark.parametrize(("command", "values"), REFUSED, ids=str)
def test_json_is_refused_in_the_words_of_the_command_line(
    command: str, values: dict[str, Any], in_process: Command
) -> None:
    code, out, err = in_process(command, *arguments(MODELS[command], values))
    assert (code, out) == (2, "")
    with pytest.raises(BadInputError) as refused:
        MODELS[command].model_validate_json(json.dumps(values))
    said = err.partition(" (Possible options")[0].rstrip()  # a shell is told of similar flags
    assert said == f"autotune: {refused.value}"


@pytest.mark.parametrize(
    "text", ["", "{", '{"device": "gb10"', "\x00", "{}{}", '{"a": 1e}', "[" * 9999]
)
def test_what_is_no_json_is_one_line(text: str) -> None:
    with pytest.raises(BadInputError, match="the request is not JSON") as refused:
        MoeRequest.model_validate_json(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        GB10 | {"predict": "maybe"},
        GB10 | {"device": None},
        GB10 | {"device": ["gb10"]},
        GB10 | {"model": "a\0b"},
        GB10 | {"out": "a\0b"},
        GB10 | {"seed": 1.5},
        GB10 | {"seed": None},
        [],
        "moe",
        None,
    ],
    ids=str,
)
def test_what_no_shell_can_say_is_one_line_too(values: Any) -> None:
    with pytest.raises(BadInputError) as refused:
        requests.Moe.model_validate(values)
    assert "\n" not in str(refused.value)
    if isinstance(values, dict):
        (name,) = [key for key, value in values.items() if (key, value) != ("device", "gb10")]
        assert f"--{name}" in str(refused.value)


ASKED: list[tuple[str, dict[str, Any]]] = [
    ("moe", GB10),
    ("moe", GB10 | {"batch_sizes": "64,1", "gamma": "2", "retry_failed": True, "out": "x"}),
    ("moe", GB10 | {"experts": 8, "tp": 2, "budget": "90s", "min_gain": "0.5%", "db": "-odd"}),
    ("spec", PAIR | {"ignore_eos": False, "schedule": False, "set": ["a=1,2", "b=3"]}),
    ("spec", PAIR | {"server_arg": ["--x 1"], "vllm": "python -m x", "gamma": "0-2,4"}),
    ("spec", {"target": ["a", "b"], "drafter": "none", "objective": "pareto", "out": "o"}),
    ("spec", {"target": "m", "gamma": "0", "quality": "t", "quality_tasks": "folder"}),
    ("spec", {"launcher": "url", "url": "http://h", "concurrency": "2", "as_json": True}),
    ("verify", {"files": ["a", "b c"], "compile_": True, "workers": 3}),
    ("export", {"study": "s", "to": "vllm", "repo": "r", "signoff": "Ann <a@x.org>"}),
    ("report", {"study": "-s", "open_": True}),
]


@pytest.mark.parametrize(("command", "values"), ASKED, ids=str)
def test_command_line_json_and_python_ask_the_same(command: str, values: dict[str, Any]) -> None:
    model = MODELS[command]
    heard: list[Request] = []
    app = typer.Typer()

    def run(request: Request) -> None:
        heard.append(request)

    build.add_command(app, model, run)
    from_json = model.model_validate_json(json.dumps(values))
    words = shlex.split(from_json.command_line(command))
    assert words[:2] == ["autotune", command]
    typer.main.get_command(app)(words[2:], standalone_mode=False)
    (typed,) = heard
    if "command" in model.model_fields:
        typed = typed.model_copy(update={"command": ""})
    assert typed == from_json
    assert typed.given() == from_json.given() == set(values)
    assert model.model_validate(from_json.model_dump()) == from_json


WORDS = st.sampled_from(["", "0", "1,8", "4,4", "-1", "2%", "90s", "16G", "auto", "x", "\0", "\n"])
VALUES = st.one_of(
    st.none(),
    WORDS,
    st.text(max_size=3),
    st.integers(),
    st.booleans(),
    st.floats(),
    st.lists(WORDS),
)


def values_of(model: type[Request]) -> st.SearchStrategy[list[tuple[str, Any]]]:
    """A few fields of a request with what somebody may send."""
    names = st.sampled_from([*model.model_fields, "another"])
    return st.lists(st.tuples(names, VALUES), max_size=4)


@given(values_of(MoeRequest))
def test_any_json_makes_a_request_of_a_kernel_or_one_line(values: list[tuple[str, Any]]) -> None:
    with contextlib.suppress(BadInputError):
        request = MoeRequest.model_validate(GB10 | dict(values))
        assert request.ladder == tuple(sorted(set(request.ladder)))
        again = MoeRequest.model_validate_json(request.model_dump_json())
        assert (again, again.given()) == (request, request.given())


@given(values_of(SpecRequest))
def test_any_json_makes_a_request_of_a_pair_or_one_line(values: list[tuple[str, Any]]) -> None:
    with contextlib.suppress(BadInputError):
        request = SpecRequest.model_validate(PAIR | dict(values))
        again = SpecRequest.model_validate_json(request.model_dump_json())
        assert again == request.model_copy(update={"header": ()})


def test_a_secret_stands_in_no_command_and_in_no_refusal() -> None:
    url = {"launcher": "url", "url": "http://h", "header": ["A: s3cret", "B: t0ken"]}
    request = SpecRequest.model_validate(url)
    assert list(request.secrets()) == ["A: s3cret", "B: t0ken"]
    assert request.command_line("spec").count("'***'") == 2
    assert "s3cret" not in request.command_line("spec") + request.model_dump_json()
    for field in ("header", "env", "server_arg", "docker_arg"):
        with pytest.raises(BadInputError) as refused:
            SpecRequest.model_validate(PAIR | {field: [{"key": "s3cret"}]})
        assert "s3cret" not in str(refused.value)


# --------------------------------------------------------------------------------------- the schema


@pytest.mark.parametrize("request_", MODELS.values(), ids=MODELS)
def test_the_schema_says_what_help_says(request_: type[Request]) -> None:
    schema = request_.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert schema["description"] == request_.__doc__
    for name, field in request_.declared():
        found = schema["properties"][name]
        assert found["description"] == field.description
        assert (name in schema.get("required", [])) == field.is_required()
        if not field.is_required():
            assert found["default"] == json.loads(json.dumps(field.default, default=str))


def test_what_an_api_takes_has_no_places_of_this_machine() -> None:
    """The database, the places of files and the way to print are the caller's own."""
    own = set(requests.Watched.model_fields)
    far = {"server", "token_file", "detach"}
    assert own == {"out", "db", "as_json", "events", "dry_run", *far}
    inside = requests.CONTAINER_FIELDS  # where moe runs; servers of spec are what is measured
    pairs = ((MoeRequest, requests.Moe, own | inside), (SpecRequest, requests.Spec, own))
    for shared, command, more in pairs:
        properties = shared.model_json_schema()["properties"]
        assert properties.keys() == {name for name, _ in shared.declared()}
        assert properties.keys() | more == command.model_json_schema()["properties"].keys()
        with pytest.raises(BadInputError, match="No such option: --out"):
            shared.model_validate(GB10 | {"out": "x"} if shared is MoeRequest else {"out": "x"})


def test_a_request_travels_to_another_process() -> None:
    request = SpecRequest.model_validate(PAIR | {"gamma": "0,2", "env": ["A=b"]})
    again = pickle.loads(pickle.dumps(request))
    assert (again, again.given()) == (request, request.given())
    assert hash(again) == hash(request)


def test_the_schema_has_bounds_choices_and_panels() -> None:
    properties = requests.Moe.model_json_schema()["properties"]
    assert properties["effort"]["enum"] == list(EFFORTS)
    assert (properties["seed"]["minimum"], properties["seed"]["maximum"]) == (0, 2**32 - 1)
    assert properties["seed"]["panel"] == "The search"


def test_the_schema_marks_what_is_or_may_hold_a_credential() -> None:
    properties = SpecRequest.model_json_schema()["properties"]
    assert {name for name, found in properties.items() if found.get("secret")} == {"header"}
    sensitive = {name for name, found in properties.items() if found.get("sensitive")}
    assert sensitive == {"env", "server_arg", "docker_arg"}


def test_the_samplers_are_those_that_there_are() -> None:
    """Declared apart, because importing Optuna takes longer than printing help."""
    assert set(SAMPLERS) == set(proposers.SAMPLERS)


# ------------------------------------------------------------------------------------- the builder


class Sample(Request):
    """Show what a request can declare."""

    many: Annotated[Texts, flag("Several.", name="--one-of")] = ()
    key: Annotated[Texts, flag("A key.", secret=True)] = ()
    wait: Annotated[Duration | None, flag("A time.", short="-w", unit="s", hidden=True)] = None
    on: Annotated[bool, flag("On unless switched off.")] = True
    note: str = "no flag"


def test_what_a_request_can_declare() -> None:
    made = Sample.model_validate({"many": "a", "key": ["s3cret"], "on": False})
    assert (made.many, made.key) == (("a",), ("s3cret",))
    assert list(made.secrets()) == ["s3cret"]
    assert made.command_line("x") == "autotune x --one-of a --key '***' --no-on"
    assert [name for name, _ in Sample.declared()] == ["many", "key", "wait", "on"]
    with pytest.raises(BadInputError) as refused:
        Sample.model_validate({"key": [["s3cret"]]})
    assert "s3cret" not in str(refused.value)
    with pytest.raises(BadInputError, match="--wait 5: expected a time"):
        Sample.model_validate({"wait": 5})


def test_a_short_flag_and_one_that_help_leaves_out() -> None:
    app, heard = typer.Typer(), []

    def sample(request: Sample) -> None:
        heard.append(request)

    build.add_command(app, Sample, sample)
    command = typer.main.get_command(app)
    command(["-w", "90s", "--one-of", "a", "--one-of", "b", "--no-on"], standalone_mode=False)
    assert heard == [Sample(wait="90s", many=("a", "b"), on=False)]
    assert heard[0].given() == {"wait", "many", "on"}
    (wait,) = [param for param in command.params if param.name == "wait"]
    assert getattr(wait, "hidden", False)


def test_null_in_json_is_a_flag_that_was_not_given() -> None:
    nulls: dict[str, Any] = {"url": None, "vllm": None, "image": None, "mount": []}
    docker = PAIR | {"launcher": "docker", "image": "i"}
    assert SpecRequest.model_validate(docker | {"url": None, "vllm": None}).image == "i"
    assert SpecRequest.model_validate(PAIR | nulls).given() == {"target", "drafter"}


def test_a_type_that_no_flag_can_have_is_found_when_the_command_is_built() -> None:
    with pytest.raises(TypeError, match="no flag"):
        build.plain(dict[str, int])
    assert build.plain(tuple[Path, ...] | None) == list[Path] | None
