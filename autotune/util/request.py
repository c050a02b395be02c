"""This module declares a command's flags once: for shell, JSON schema and documentation.

A :class:`Request` holds texts as people write them, such as ``0-6`` or ``10m``, and refuses what
cannot be read; plan makers turn the texts into values. ``autotune.cli.build`` makes a Typer command
of a request, ``autotune.cli.reference`` a page, ``model_json_schema()`` the schema of an API.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from autotune.core import BadInputError
from autotune.util import flags
from autotune.util.secret import MASK


def flag(
    text: str,
    *,
    panel: str | None = None,
    name: str | None = None,
    least: int | None = None,
    most: int | None = None,
    **more: Any,
) -> Any:
    """Declare a field of a request as a flag of the command line.

    Args:
        text: what it is for, in one line of help.
        panel: heading of ``--help`` and of the documentation; None is the command's own.
        name: the flag, where it is not the field's name with dashes.
        least: smallest number.
        most: largest number.
        more: further keywords, which stand in the JSON schema: ``enum`` (the texts that are
            allowed), ``metavar``, ``positional``, ``secret`` (values are written nowhere),
            ``sensitive`` (values may hold a credential), ``short`` (such as ``-v``), ``hidden``
            (not in help), ``unit``, ``note`` (more for the documentation), ``reach`` (``place``: a
            name or a path; ``operator``: what runs or reaches something; a service takes both only
            within its operator's lists), or what a request itself reads.
    """
    named = {"panel": panel, "flag": name, **more}
    extra = {key: value for key, value in named.items() if value is not None}
    return Field(description=text, ge=least, le=most, json_schema_extra=extra)


def extra(field: FieldInfo) -> Mapping[str, Any]:
    """Return the keywords that :func:`flag` was given."""
    return cast("Mapping[str, Any]", field.json_schema_extra or {})


def flag_of(name: str) -> str:
    """Write a field's name as a flag: ``--batch-sizes`` for ``batch_sizes``."""
    return f"--{name.replace('_', '-')}"


def is_secret(field: FieldInfo) -> bool:
    """Tell whether the field's values are credentials, which are written nowhere."""
    return bool(extra(field).get("secret"))


def checked(parse: Callable[[str, str], object]) -> AfterValidator:
    """Make a validator that keeps what ``parse``, given the text and its flag, can read."""

    def check(text: str, info: ValidationInfo) -> str:
        parse(text, flag_of(info.field_name or ""))
        return text

    return AfterValidator(check)


def checked_each(parse: Callable[[str, str], object]) -> AfterValidator:
    """Like :func:`checked`, for each text of a flag that may be repeated."""

    def check(texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for text in texts:
            parse(text, flag_of(info.field_name or ""))
        return texts

    return AfterValidator(check)


def several(value: object) -> object:
    """Take a single text where several may be given."""
    return (value,) if isinstance(value, str | Path) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(several)]
"""A flag that may be repeated; an API may give a single text."""
Paths = Annotated[tuple[Path, ...], BeforeValidator(several)]
Duration = Annotated[str, checked(flags.seconds), Field(examples=["90s", "10m", "2h"])]
Share = Annotated[str, checked(flags.fraction), Field(examples=["1%", "0.01"])]
BatchSizes = Annotated[
    str,
    checked(lambda text, _: flags.batch_sizes(text, ())),
    Field(examples=["1,8,64", "auto"]),
]
StudyName = Annotated[str, AfterValidator(flags.study_name)]
Line = Annotated[str, checked(flags.one_line)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Workers = Annotated[int | None, flag("Compile processes; default: CPUs.", least=1, most=1024)]


class Request(BaseModel):
    """A request holds the flags of a command; the field's default is that of the flag.

    Making one raises :class:`autotune.core.BadInputError`, in one line that names the flag, whether
    the values come from the command line, from JSON or from Python. Its JSON holds what was given,
    without secrets, and makes the same request again.
    """

    examples: ClassVar[tuple[str, ...]] = ()
    """Command lines for help and the documentation."""

    # Of a dozen requests a command reads one, and building the validator of each takes time.
    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, defer_build=True
    )

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise BadInputError(_refusal(cls, error)) from None  # pydantic's repeats the value

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Make a request of JSON.

        Raises:
            BadInputError: it is no JSON, or the values are refused.
        """
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:  # of the text: what it holds is refused above
            reason = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise BadInputError(f"the request is not JSON: {reason}") from None

    @field_validator("*")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str | Path):
                flags.plain_text(str(part), cls.flag_name(name))
        if value is not None and (choices := extra(cls.model_fields[name]).get("enum")):
            flags.one_of(value, cls.flag_name(name), choices)
        return value

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keep the fields that were given, without secrets."""
        kept = self.model_fields_set - {n for n, field in self.declared() if is_secret(field)}
        return {name: value for name, value in handler(self).items() if name in kept}

    @classmethod
    def flag_name(cls, name: str) -> str:
        """Return what the command line calls the field: a flag, or the name of an argument."""
        field = cls.model_fields[name]
        if extra(field).get("positional"):
            return name
        return str(extra(field).get("flag") or flag_of(name))

    @classmethod
    def declared(cls) -> Iterator[tuple[str, FieldInfo]]:
        """Iterate over the command line's fields by name, a model's own before what it shares."""
        names = (name for model in cls.__mro__ for name in inspect.get_annotations(model))
        for name in dict.fromkeys(names):
            field = cls.model_fields.get(name)
            if field is not None and field.description is not None:
                yield name, field

    def given(self) -> set[str]:
        """Return the names of the fields that were given a value, default or not; null is none."""
        names = self.model_fields_set & {name for name, _ in self.declared()}
        return {name for name in names if getattr(self, name) not in {None, ()}}

    def secrets(self) -> Iterator[str]:
        """Iterate over the values that must be written nowhere, as they were given."""
        for name, field in self.declared():
            if is_secret(field) and (value := getattr(self, name)):
                yield from value if isinstance(value, tuple) else (value,)

    def command_line(self, command: str) -> str:
        """Write the command that asks for the same, with ``***`` for what is secret."""
        words, arguments = ["autotune", command], []
        for name, field in self.declared():
            value = getattr(self, name) if name in self.model_fields_set else None
            for part in value if isinstance(value, tuple) else (value,):
                if part is None:
                    continue
                text = MASK if is_secret(field) else str(part)
                if extra(field).get("positional"):
                    arguments.append(text)
                elif isinstance(part, bool):
                    words += _switch(self.flag_name(name), field, on=part)
                elif text.startswith("-"):
                    words.append(f"{self.flag_name(name)}={text}")
                else:
                    words += [self.flag_name(name), text]
        ambiguous = any(text.startswith("-") for text in arguments)
        return shlex.join([*words, *(["--"] if ambiguous else []), *arguments])


def _switch(flag: str, field: FieldInfo, *, on: bool) -> list[str]:
    if on:
        return [flag]
    return [flag.replace("--", "--no-", 1)] if field.default else []


def _refusal(model: type[Request], error: ValidationError) -> str:
    """Say pydantic's first finding in one line, as the command line would."""
    first = error.errors(include_url=False, include_context=False)[0]
    kind, value = first["type"], first["input"]
    if not first["loc"]:
        return f"expected an object with the flags of a command, not {type(value).__name__}"
    name = str(first["loc"][0])
    if kind == "extra_forbidden":
        return f"No such option: {flag_of(name)}"
    field, flag = model.model_fields[name], model.flag_name(name)
    if kind == "missing":
        what = "argument" if extra(field).get("positional") else "option"
        return f"Missing {what} '{flag}'."
    if kind in {"greater_than_equal", "less_than_equal"}:
        bounds = {k: getattr(m, k) for m in field.metadata for k in ("ge", "le") if hasattr(m, k)}
        return f"{flag} {value}: expected {bounds['ge']} to {bounds['le']}"
    return f"Invalid value for '{flag}': {first['msg']}"
