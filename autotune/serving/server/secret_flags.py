"""Secrets in the flags of ``autotune spec``: references from the start, values at the launch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from autotune.engine.arguments import is_flag
from autotune.util import secret

HOLDERS = ("--env", "--server-arg", "--docker-arg", "--vllm", "--set")
"""Flags whose values may hold secrets that a server needs."""
_NAMED = re.compile(r"(-e|)([A-Za-z_][\w.-]*)=(.+)", re.ASCII | re.DOTALL)


def hidden(flag: str, text: str) -> str:
    """What was given to one of :data:`HOLDERS`, with references for the secrets in it.

    Text that does not parse is left to those who report that, and masked in what they say.
    """
    if flag in {"--env", "--set"}:
        name, equals, value = text.partition("=")
        return f"{name}={secret.hide(name, value)}" if equals else text
    try:
        words = shlex.split(text)
    except ValueError:
        hidden_words(text.split())
        return text
    safe = hidden_words(words)
    return text if safe == words else shlex.join(safe)


def hidden_words(words: Sequence[str]) -> list[str]:
    """Arguments of a program, with references for the secrets among them."""
    safe: list[str] = []
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        named = _NAMED.fullmatch(word)
        if word.startswith("--") and "=" in word:
            flag, _, value = word.partition("=")
            inner = _NAMED.fullmatch(value)  # --env=TOKEN=x
            if inner is not None and not secret.is_secret_name(flag):
                safe.append(f"{flag}={inner[2]}={secret.hide(inner[2], inner[3])}")
            else:
                safe.append(f"{flag}={secret.hide(flag, value)}")
        elif named is not None:
            safe.append(f"{named[1]}{named[2]}={secret.hide(named[2], named[3])}")
        elif before.startswith("-") and "=" not in before and not word.startswith("-"):
            safe.append(secret.hide(before, word))
        else:
            safe.append(secret.keep("SECRET", word) if secret.has_user_info(word) else word)
    return safe


def hidden_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line of ours with references for the secrets in :data:`HOLDERS`."""
    safe: list[str] = []
    for index, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        before = arguments[index - 1] if index else ""
        if equals and flag in HOLDERS:
            safe.append(f"{flag}={hidden(flag, value)}")
        else:
            safe.append(hidden(before, word) if before in HOLDERS else word)
    return safe


def token_to_environment(
    args: Sequence[str], env: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Arguments without the value of ``--hf-token``, which goes into ``HF_TOKEN``.

    All users of a machine see a process's arguments. Without a value the flag stays: vLLM then
    takes the token that the user logged in with.
    """
    left: list[str] = []
    given = dict(env)
    for index, word in enumerate(args):
        before = args[index - 1] if index else ""
        is_value = is_flag(before, "--hf-token") and "=" not in before
        if is_value and secret.is_reference(word):
            left.pop()
            given["HF_TOKEN"] = word
        elif is_flag(word, "--hf-token") and secret.is_reference(word.partition("=")[2]):
            given["HF_TOKEN"] = word.partition("=")[2]
        else:
            left.append(word)
    return tuple(left), given


def resolved(words: Sequence[str]) -> list[str]:
    """Arguments with the secrets that they refer to, for the process itself.

    Raises:
        MissingEnvironmentError: one is not set.
    """
    return [secret.resolve(word) for word in words]


def environment_of(env: Mapping[str, str]) -> dict[str, str]:
    """Variables with the secrets that they refer to, for the process itself.

    Raises:
        MissingEnvironmentError: one is not set.
    """
    return {name: secret.resolve(value) for name, value in env.items()}


def secrets_of(texts: Iterable[str]) -> dict[str, str]:
    """The secrets that texts refer to, by variable, for a process on another machine.

    Raises:
        MissingEnvironmentError: one is not set.
    """
    return {
        piece[2:-1]: secret.resolve(piece)
        for text in texts
        for piece, is_reference in secret.split(text)
        if is_reference
    }


def by_name(options: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Options of ``docker run`` with secret variables by name alone, and those variables.

    Docker takes the value of ``--env NAME`` from its own environment, which other users cannot see.
    """
    left: list[str] = []
    variables: dict[str, str] = {}
    for index, word in enumerate(options):
        before = options[index - 1] if index else ""
        head, name, value = _variable(word, before)
        if name and secret.is_reference(value):
            left.append(f"{head}{name}")
            variables[name] = value
        else:
            left.append(word)
    return left, variables


def _variable(word: str, before: str) -> tuple[str, str, str]:
    """What leads to a variable in docker's options, its name and its value; empty for no such."""
    head = ""
    if word.startswith("--env="):
        head = "--env="
    elif word.startswith("-e") and before not in {"-e", "--env"}:
        head = "-e=" if word.startswith("-e=") else "-e"
    elif before not in {"-e", "--env"}:
        return "", "", ""
    name, _, value = word.removeprefix(head).partition("=")
    return head, name, value


def shell_word(word: str) -> str:
    """A word for a shell, in which references stay variables."""
    pieces = secret.split(word)
    if not any(is_reference for _, is_reference in pieces):
        return shlex.quote(word)
    return "".join(f'"{piece}"' if known else shlex.quote(piece) for piece, known in pieces)


def shell_line(words: Sequence[str]) -> str:
    """A command for a shell, in which references stay variables."""
    return " ".join(map(shell_word, words))
