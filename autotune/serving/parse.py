"""This module reads the texts of ``autotune spec``'s flags, and types the fields for them.

What cannot be read names the flag, in one line. What a parser needs of slower modules it imports
itself, because ``--help`` needs the requests.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from autotune.core import BadInputError
from autotune.engine.arguments import whole_of
from autotune.export.files import expand_user
from autotune.serving.server.secret_flags import hidden, hidden_words
from autotune.util import flags
from autotune.util.request import Texts, checked, checked_each, several
from autotune.util.secret import hide, is_reference

MOST_GAMMA = 64
MOST_CONCURRENCY = 4096
SET_BY_US = {
    "method": "the drafter says it (--drafter)",
    "model": "the drafter says it (--drafter)",
    "num_speculative_tokens": "is --gamma",
    "num_speculative_tokens_per_batch_size": "is found by the tuner (--schedule)",
    "rejection_sample_method": "is set by --synthetic-acceptance",
    "synthetic_acceptance_rates": "is --synthetic-acceptance",
    "synthetic_acceptance_length": "is --synthetic-acceptance",
}
"""Keys of ``--speculative-config`` that have flags of their own."""
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


def parse_gammas(text: str, flag: str = "--gamma") -> tuple[int, ...]:
    """Read ``0-4`` or ``0,2,4`` or both as ascending numbers.

    Raises:
        BadInputError: not of that form, or above :data:`MOST_GAMMA`.
    """
    gammas: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip(), re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high or high > MOST_GAMMA:
            raise BadInputError(
                f"{flag} {flags.typed(text)}: expected numbers from 0 to {MOST_GAMMA}, such as 0-6 "
                "or 0,2,4"
            )
        gammas.update(range(low, high + 1))
    return tuple(sorted(gammas))


def parse_concurrency(text: str, flag: str = "--concurrency") -> tuple[int, ...]:
    """Read ``1,4,8`` as ascending numbers.

    Raises:
        BadInputError: not of that form, below 1 or above :data:`MOST_CONCURRENCY`.
    """
    return flags.counts(text, flag, 1, MOST_CONCURRENCY)


def parse_contexts(text: str, flag: str = "--context") -> tuple[int, ...]:
    """Read ``1k,16k,64K`` as ascending numbers of tokens, as vLLM's ``--max-model-len``.

    Raises:
        BadInputError: not of that form, or one is given twice.
    """
    lengths = [whole_of(part) for part in text.split(",")]
    if not all(lengths):
        raise BadInputError(
            f"{flag} {flags.typed(text)}: expected numbers of tokens such as 1k,16k,64k"
        )
    flags.each_once(lengths, flag)
    return tuple(sorted(length for length in lengths if length))


def parse_values(text: str, flag: str) -> tuple[str, ...]:
    """Split ``auto,fp8`` at its commas.

    Raises:
        BadInputError: one is empty or given twice.
    """
    values = tuple(part.strip() for part in text.split(","))
    if not all(values):
        raise BadInputError(f"{flag} {flags.typed(text)}: an empty value")
    flags.each_once(values, flag)
    return values


def is_range(utilization: str | None) -> bool:
    """Tell whether shares of the memory are searched between two, such as ``0.4:0.9``."""
    return ":" in (utilization or "")


def check_utilization(text: str, flag: str) -> None:
    """Refuse what is neither a range nor a list of shares.

    Raises:
        BadInputError: with the reason.
    """
    from autotune.serving.memory.utilization import parse_range  # noqa: PLC0415

    if is_range(text):
        parse_range(text)
        return
    for share in parse_values(text, flag):
        check_share(share, flag)


def check_share(share: object, flag: str) -> None:
    """Refuse what is no share of the memory.

    Raises:
        BadInputError: it is no number above 0 and at most 1.
    """
    try:
        fits = isinstance(share, str | int | float) and 0 < float(share) <= 1
    except ValueError:
        fits = False
    if not fits:
        raise BadInputError(f"{flag}: {flags.typed(str(share))} is not above 0 and at most 1")


def parse_set(text: str, flag: str = "--set") -> tuple[str, tuple[str, ...]]:
    """Read ``max-num-seqs=8,16`` as a parameter of the space and its values.

    Raises:
        BadInputError: not of that form, or a parameter with a flag of its own.
    """
    from autotune.serving.recipe import GAMMA, KV_DTYPE, UTILIZATION, flag_of  # noqa: PLC0415

    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--")
    if not equals or _NAME.fullmatch(name) is None:
        raise BadInputError(
            f"{flag} {flags.typed(text)}: expected FLAG=VALUE,VALUE such as max-num-seqs=8,16"
        )
    parameter = name.replace("-", "_")
    if parameter in {GAMMA, KV_DTYPE, UTILIZATION}:
        raise BadInputError(f"{flag} {name}: has a flag of its own, {flag_of(parameter)}")
    return parameter, parse_values(values, f"{flag} {name}")


def parse_option(text: str, flag: str = "--spec-set") -> tuple[str, tuple[str, ...]]:
    """Read ``prompt_lookup_max=4,5`` as a drafter's option and its values.

    Raises:
        BadInputError: not of that form, or an option that the tuner sets.
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or _NAME.fullmatch(name) is None:
        raise BadInputError(
            f"{flag} {flags.typed(text)}: expected KEY=VALUE,VALUE such as prompt_lookup_max=4,5"
        )
    if name in SET_BY_US:
        raise BadInputError(f"{flag} {name}: {SET_BY_US[name]}")
    return name, parse_values(values, f"{flag} {name}")


def parse_variables(text: str, flag: str = "--env-set") -> tuple[str, tuple[str, ...]]:
    """Read ``NAME=a,b`` as an environment variable and its values.

    Raises:
        BadInputError: not of that form, a key for the server, or a secret.
    """
    name, values = parse_variable(text, flag)
    if is_reference(values):
        raise BadInputError(f"{flag} {name}: values to compare are shown; give a secret by --env")
    return name, parse_values(values, f"{flag} {name}")


def parse_captures(text: str, flag: str = "--capture-sizes") -> tuple[str, ...]:
    """Read ``default,512``: vLLM's own sizes, and tokens up to which others go.

    Raises:
        BadInputError: a value that is neither.
    """
    values = parse_values(text, flag)
    for value in values:
        if value != "default" and not (
            re.fullmatch(r"\d{1,6}", value, re.ASCII) and int(value) >= 1
        ):
            raise BadInputError(
                f"{flag} {flags.typed(value)}: expected default or a number of tokens"
            )
    return values


def parse_words(text: str, flag: str) -> list[str]:
    """Split a command line into words, with ``~`` written out and references for secrets.

    Raises:
        BadInputError: an open quote, or no word.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        hidden(flag, text)  # masks what it may hold
        raise BadInputError(f"{flag} {flags.typed(text)}: {error}".rstrip(".")) from None
    if not words:
        raise BadInputError(f"{flag}: is empty")
    return hidden_words([expand_user(word) for word in words])


def parse_variable(text: str, flag: str = "--env") -> tuple[str, str]:
    """Split ``NAME=VALUE``.

    Raises:
        BadInputError: not of that form, or a key for the server.
    """
    from autotune.serving.recipe import LOCKED_OUT  # noqa: PLC0415

    name, equals, value = text.partition("=")
    shown = f" {flags.typed(name)}" if equals else ""  # what has no name may be a secret
    if not equals or re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is None:
        raise BadInputError(f"{flag}{shown}: expected NAME=VALUE")
    if name == "VLLM_API_KEY":
        raise BadInputError(f"{flag} {name}: {LOCKED_OUT}")
    return name, hide(name, value)


def parse_rates(text: str, flag: str = "--synthetic-acceptance") -> tuple[float, ...]:
    """Read ``.8,.6,.4``: shares of drafts whose first, second, third token is accepted.

    Raises:
        BadInputError: no numbers, or they increase.
    """
    from autotune.serving.forecast.acceptance import check_reached  # noqa: PLC0415

    try:
        return tuple(check_reached([float(part) for part in text.split(",")]))
    except ValueError as error:
        raise BadInputError(f"{flag} {flags.typed(text)}: {error}") from None


def check_slo(text: str, _flag: str) -> None:
    """Refuse what are no limits on latencies.

    Raises:
        BadInputError: with the reason.
    """
    from autotune.serving.measure.stopping import parse_slo  # noqa: PLC0415

    parse_slo(text)


def check_image(text: str, flag: str) -> None:
    """Refuse what can be no docker image's name.

    Raises:
        BadInputError: it is empty, or holds a space or a control character.
    """
    if not text.strip() or text.startswith("-") or not text.isprintable() or " " in text:
        raise BadInputError(f"{flag} {text!r}: expected a docker image's name")


def check_gpus(text: str, flag: str = "--gpus") -> None:
    """Refuse what docker's ``--gpus`` could not take.

    Raises:
        BadInputError: it is empty, or holds a space.
    """
    if re.fullmatch(r"[\w\",=.:-]+", text, re.ASCII) is None:
        raise BadInputError(f"{flag} {text!r}: expected all, none, a number or device=0,1")


def _as_text(value: object) -> object:
    """Take a bare number of requests by JSON, which it was before there could be several."""
    return str(value) if type(value) is int else value


# Fields of a request that hold such texts.

Home = Annotated[str, AfterValidator(expand_user)]
"""A path or another name; ``~`` is written out, which a shell leaves alone in ``--target=~/m``."""
Homes = Annotated[
    tuple[str, ...],
    BeforeValidator(several),
    AfterValidator(lambda texts: tuple(map(expand_user, texts))),
]
Folder = Annotated[Path, AfterValidator(lambda path: Path(expand_user(str(path))))]
Gammas = Annotated[str, checked(parse_gammas), Field(examples=["0-6", "0,2,4"])]
Values = Annotated[str, checked(parse_values)]
Utilization = Annotated[str, checked(check_utilization), Field(examples=["0.8,0.85", "0.4:0.9"])]
Concurrency = Annotated[str, checked(parse_concurrency), Field(examples=["1,4,8"])]
Contexts = Annotated[
    str, BeforeValidator(_as_text), checked(parse_contexts), Field(examples=["1k,16k,64k"])
]
Rates = Annotated[str, checked(parse_rates), Field(examples=[".8,.6,.4"])]
Slo = Annotated[str, checked(check_slo), Field(examples=["ttft=500ms,tpot=50ms"])]
Image = Annotated[str, checked(check_image)]
Gpus = Annotated[str, checked(check_gpus), Field(examples=["all", "none", "2", "device=0,1"])]
Words = Annotated[str, checked(parse_words)]
ListOfWords = Annotated[Texts, checked_each(parse_words)]
Sets = Annotated[Texts, checked_each(parse_set)]
Variables = Annotated[Texts, checked_each(parse_variable)]
Options = Annotated[Texts, checked_each(parse_option)]
VariableSets = Annotated[Texts, checked_each(parse_variables)]
Captures = Annotated[str, checked(parse_captures), Field(examples=["default,512"])]
