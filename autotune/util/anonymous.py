"""Values without what tells of a person or a machine: paths, hosts, addresses, ids, tokens.

For files that are made to be given away. What cannot be told apart from harmless text is taken for
harmful: better a word too few in a bundle than one too many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from autotune.util import secret

PATH, HOST, ADDRESS, MAIL, URL = "<path>", "<host>", "<address>", "<mail>", "<url>"
_LEAST = 3
"""Characters of a name that is replaced wherever it stands; a shorter one would hit words."""
_NO_SECRETS = frozenset({"prompts_key"})
"""Named as secrets are, and digests."""
_PLAIN_HOSTS = frozenset({"localhost", "localdomain"})

# The order matters: a URL holds a path, an address a number.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[\w-]{8,}"), secret.MASK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]+)?"), secret.MASK),
    (re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+"), URL),
    (re.compile(r"(?<![\w.])(?:[\w-]+\.)+[a-zA-Z]{2,}(?::\d+)?/[^\s'\"<>]+"), URL),  # an image's
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), MAIL),
    (re.compile(r"\b(GPU|MIG)-[0-9a-fA-F][0-9a-fA-F-]{7,}[/\d]*"), r"\1"),
    (re.compile(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b"), ADDRESS),
    (re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{1,4}(?![\w:])"), ADDRESS),
    (re.compile(r"(?<![\d.])(?!127\.0\.0\.1|0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"), ADDRESS),
    # From the root, from home, or from where the command ran; and what has two slashes or more,
    # which no model's name has. Not `16/64/128`, nor `tok/s`.
    (re.compile(r"(?<![\w/.])(?:~[\w-]*|\.{1,2})?/(?:[^\s'\"`,;:()\[\]{}<>|=]+)"), PATH),
    (re.compile(r"(?<![\w/.<>-])(?![\d/]+(?![\w/]))[\w.@+-]+(?:/[\w.@+=-]+){2,}"), PATH),
)


_ASSIGNED = re.compile(r"(?<![\w-])(-{0,2}[A-Za-z_][\w-]*)=([^\s'\",;]+)")


def _names_secret(name: str) -> bool:
    return secret.is_secret_name(name) and name not in _NO_SECRETS


def _is_open(value: Any) -> bool:
    """Whether it is a text that says something, and no reference to a variable."""
    return isinstance(value, str) and bool(value) and not secret.is_reference(value)


def _without_secret(found: re.Match[str]) -> str:
    name, value = found.groups()
    return f"{name}={secret.MASK}" if _names_secret(name) and _is_open(value) else found[0]


class Anonymous:
    """Takes out of JSON values what tells of a person or a machine."""

    def __init__(self, places: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        """Prepare.

        Args:
            places: folders of this machine, with spaces or without; longer ones first win.
            hosts: its names, and those of its users.
        """
        known = {place.rstrip("/") for place in places} - {""}
        self._places = sorted(known, key=len, reverse=True)
        names = {name for name in hosts if len(name) >= _LEAST} - _PLAIN_HOSTS
        words = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        self._hosts = (
            re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])(?:\.[\w-]+)*", re.I) if words else None
        )

    def __call__(self, value: Any) -> Any:
        """Return the value without them; of a text that is a path as a whole, its last name."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self._text(str(key)): self._of(str(key), one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            flags = [one if str(one).startswith("-") else "" for one in value]
            return [self._of(flag, one) for flag, one in zip(["", *flags], value, strict=False)]
        return value

    def _of(self, name: str, value: Any) -> Any:
        """A value under a name, or behind a flag; of a secret's name each text is one."""
        if not _names_secret(name):
            return self(value)
        if isinstance(value, list | tuple):
            return [self._of(name, one) for one in value]
        return secret.MASK if _is_open(value) else self(value)

    def _text(self, text: str) -> str:
        text = secret.mask(text)
        if text.startswith(("/", "~/", "./", "../")) and "\n" not in text and "://" not in text:
            text = PurePosixPath(text).name if text.strip("/.~") else PATH
        for place in self._places:
            if place in text:
                text = re.sub(rf"{re.escape(place)}[^\s'\"`,;:()\[\]{{}}<>|=]*", PATH, text)
        text = _ASSIGNED.sub(_without_secret, text)
        for pattern, instead in _RULES:
            text = pattern.sub(instead, text)
        return text if self._hosts is None else self._hosts.sub(HOST, text)
