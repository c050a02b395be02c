"""Secrets: values that are used and never written, and a mask for texts that may repeat them."""

from __future__ import annotations

import base64
import hmac
import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn
from urllib.parse import quote, quote_plus

from autotune.core import MissingEnvironmentError

MASK = "***"
_SHORTEST = 4
"""A value such as ``1`` is no secret, and stands everywhere."""
_SHORTEST_PART = 8
"""So many characters of a longer secret, in a row, are masked as well: texts are cut."""
_LONGEST_PART = 16
_LEVELS = 4
"""JSON in JSON in JSON: an error that repeats an error, kept in a document."""


_SECRET_WORDS = frozenset(
    {"TOKEN", "KEY", "KEYS", "APIKEY", "SECRET", "SECRETS", "PASS", "PASSWORD", "PASSWORDS"}
    | {"PASSWD", "PASSPHRASE", "PWD", "CREDENTIAL", "CREDENTIALS", "AUTH", "AUTHORIZATION"}
    | {"BEARER", "COOKIE"}
)
_SECRET_ENDS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "APIKEY", "CREDENTIAL", "CREDENTIALS")
_PLAIN_ENDS = frozenset(
    {"THRESHOLD", "LIMIT", "COUNT", "SIZE", "LENGTH", "LEN", "BUDGET", "ID", "IDS", "TOTAL"}
    | {"FILE", "PATH", "DIR", "FOLDER", "MODE", "SOCK", "EXPERT", "INFO"}
)
"""What a name may end with that counts or points to something: ``…_TOKEN_THRESHOLD``."""
_PLACES = frozenset({"PWD", "OLDPWD"})
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)\}", re.ASCII)
_USER_INFO = re.compile(r"(?<=://)[^/\s@\"']*@")


class Secret:
    """A value that has no text form: only :meth:`reveal` gives it, to what must use it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for the request or process that it is meant for."""
        return self._value

    def __str__(self) -> NoReturn:
        raise TypeError("a secret has no text; reveal() gives it to what must use it")

    def __format__(self, _spec: str) -> NoReturn:
        raise TypeError("a secret has no text; reveal() gives it to what must use it")

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(
            self._value.encode("utf-8", "surrogatepass"),
            other._value.encode("utf-8", "surrogatepass"),
        )

    def __hash__(self) -> int:
        return hash((Secret, self._value))


class Mask:
    """Texts without certain secrets: raw, escaped, encoded, or a part of eight characters or more.

    Masking takes time in proportion to the text. Mask first, then cut: a cut may leave less of a
    secret than can be recognised.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        """Prepare a mask.

        Args:
            secrets: values; one shorter than four characters is left alone.
        """
        whole: dict[str, None] = {}
        self._starts: dict[str, list[tuple[str, int, int]]] = {}
        for secret in dict.fromkeys(secrets):
            if len(secret) >= _SHORTEST:
                for form in _forms(secret):
                    whole[form] = None
                    if len(secret) > _SHORTEST_PART:
                        self._add_parts(form)
        longest = sorted(whole, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest))) if longest else None
        blocks = sorted(self._starts, key=len, reverse=True)
        self._blocks = re.compile("|".join(map(re.escape, blocks))) if blocks else None

    def _add_parts(self, form: str) -> None:
        """Any part of ``form`` that is long enough holds one of these blocks of it."""
        shortest = max(_SHORTEST_PART, min(len(form) // 3, _LONGEST_PART))
        size = shortest // 2
        for start in range(0, len(form) - size + 1, size):
            block = form[start : start + size]
            self._starts.setdefault(block, []).append((form, start, shortest))

    def __call__(self, text: str) -> str:
        """The text with :data:`MASK` for what it holds of the secrets."""
        if self._whole is not None:
            text = self._whole.sub(MASK, text)
        if self._blocks is None or not (found := self._blocks.search(text)):
            return text
        pieces, done = [], 0
        while found is not None:
            low, high = self._part(text, found, done)
            if high:
                pieces += [text[done:low], MASK]
                done = high
            found = self._blocks.search(text, high or found.start() + 1)
        return "".join([*pieces, text[done:]])

    def _part(self, text: str, found: re.Match[str], done: int) -> tuple[int, int]:
        """Where the part of a secret around a block begins and ends; 0 and 0 if it is too short."""
        best = (0, 0)
        for form, start, shortest in self._starts[found[0]]:
            low, high = found.start(), found.end()
            left, right = start, start + len(found[0])
            while low > done and left > 0 and text[low - 1] == form[left - 1]:
                low, left = low - 1, left - 1
            while high < len(text) and right < len(form) and text[high] == form[right]:
                high, right = high + 1, right + 1
            if high - low >= shortest and high - low > best[1] - best[0]:
                best = (low, high)
        return best


def _forms(secret: str) -> list[str]:
    """How a text may repeat a secret: as it is, escaped for some format, or in base64."""
    plain = secret.encode("utf-8", "surrogatepass")
    forms = [secret]
    for escape_all in (True, False):
        escaped = secret
        for _ in range(_LEVELS):
            escaped = json.dumps(escaped, ensure_ascii=escape_all)[1:-1]
            forms.append(escaped)
    percent = [quote(plain, safe=""), quote(plain), quote_plus(plain)]
    forms += percent + [re.sub("%..", lambda m: m[0].lower(), text) for text in percent]
    forms += [html.escape(secret), html.escape(secret, quote=False), repr(secret)[1:-1]]
    forms += [plain.hex()]
    for before in range(3):  # where it stands in what was encoded decides how it looks
        code = base64.b64encode(bytes(before) + plain).rstrip(b"=").decode()
        code = code[-(-before * 8 // 6) : (before + len(plain)) * 8 // 6]
        forms += [code, code.translate(str.maketrans("+/", "-_"))]
    return [form for form in dict.fromkeys(forms) if len(form) >= _SHORTEST]


def of_headers(headers: Mapping[str, str]) -> list[str]:
    """What is secret in the values of HTTP headers: each whole, and without its scheme.

    Of ``Basic`` credentials the password is one too.
    """
    found = []
    for value in headers.values():
        scheme, _, rest = value.strip().partition(" ")
        found += [value, rest.strip()]
        if scheme.lower() == "basic":
            try:
                user_and_password = base64.b64decode(rest, validate=True).decode()
            except ValueError:
                continue
            found += [user_and_password, user_and_password.partition(":")[2]]
    return [value for value in dict.fromkeys(found) if value]


_known: dict[str, None] = {}
_mask = Mask(())


def remember(secrets: Iterable[str]) -> None:
    """Have :func:`mask` hide these values from now on, in all that this process writes."""
    global _mask  # noqa: PLW0603 - one process, one set of secrets
    fresh = [secret for secret in secrets if secret not in _known]
    if fresh:
        _known.update(dict.fromkeys(fresh))
        _mask = Mask(_known)


def forget() -> None:
    """Know no secret any more."""
    global _mask  # noqa: PLW0603
    _known.clear()
    _kept.clear()
    _mask = Mask(())


def is_any_known() -> bool:
    """Whether :func:`mask` has anything to hide."""
    return bool(_known)


def mask(text: str) -> str:
    """The text without the values that :func:`remember` was given."""
    return _mask(_USER_INFO.sub(f"{MASK}@", text) if "@" in text else text)


def masked(value: Any) -> Any:
    """A JSON value with :func:`mask` done to all its texts; the value itself if none is known."""
    if not _known:
        return value
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {masked(key): masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner) for inner in value]
    return value


# ------------------------------------------------------------------------------------------
# references: what stands in files for a secret


def is_secret_name(name: str) -> bool:
    """Whether a variable, flag or key is named as secrets are: ``HF_TOKEN``, ``--api-key``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()
    parts = [part for part in re.split(r"[^A-Z0-9]+", words) if part]
    if not parts or parts[-1] in _PLAIN_ENDS or name in _PLACES:
        return parts[-1:] == ["ID"] and "KEY" in parts  # an access key's
    return any(part in _SECRET_WORDS or part.endswith(_SECRET_ENDS) for part in parts)


def has_user_info(value: str) -> bool:
    """Whether a text holds a URL with a user or password."""
    return _USER_INFO.search(value) is not None


def without_user_info(url: str) -> str:
    """A URL, well-formed or not, without what may be a user, a password or a query."""
    head, at, rest = url.rpartition("@")
    scheme = re.match(r"[A-Za-z+]*:?/*", head)
    shown = f"{scheme[0] if scheme else ''}{MASK}@{rest}" if at else url
    return shown.partition("?")[0]


_kept: dict[str, Secret] = {}


def keep(name: str, value: str) -> str:
    """Keep a secret for this process; gives the reference that stands for it: ``${HF_TOKEN}``.

    Args:
        name: of its variable, flag or key.
        value: the secret; a reference is left as it is.
    """
    if not value or value == MASK or is_reference(value):
        return value
    wanted = re.sub(r"\W", "_", name.lstrip("-"), flags=re.ASCII).upper()
    wanted = wanted if re.match(r"[A-Z_]", wanted) else f"_{wanted}"
    wanted = wanted if is_secret_name(wanted) else f"{wanted}_SECRET"
    kept, number = wanted, 1
    while kept in _kept and _kept[kept].reveal() != value:
        number += 1
        kept = f"{wanted}_{number}"
    _kept[kept] = Secret(value)
    remember([value])
    return f"${{{kept}}}"


def remember_environment(environment: Mapping[str, str]) -> None:
    """Have :func:`mask` hide the variables that are named as secrets are, but not short ones.

    Programs that we start inherit them, and may repeat them in what they say.
    """
    remember(
        value
        for name, value in environment.items()
        if is_secret_name(name) and len(value) >= _LONGEST_PART and not re.search(r"[/\s]", value)
    )


def is_reference(text: str) -> bool:
    """Whether a text is one reference to a secret and nothing else."""
    found = _REFERENCE.fullmatch(text)
    return found is not None and is_secret_name(found[1])


def split(text: str) -> list[tuple[str, bool]]:
    """The pieces of a text in order, and whether each is a reference."""
    pieces, done = [], 0
    for found in _REFERENCE.finditer(text):
        if is_secret_name(found[1]):
            pieces += [(text[done : found.start()], False), (found[0], True)]
            done = found.end()
    return [(piece, known) for piece, known in [*pieces, (text[done:], False)] if piece]


def resolve(text: str) -> str:
    """The text with secrets in place of their references, for the process that needs them.

    One that :func:`keep` has not made names a variable of this process.

    Args:
        text: such as ``${HF_TOKEN}``, or JSON that holds it.

    Raises:
        MissingEnvironmentError: that is not set.
    """
    pieces = []
    for piece, is_known in split(text):
        if not is_known:
            pieces.append(piece)
            continue
        name = piece[2:-1]
        found = _kept[name].reveal() if name in _kept else os.environ.get(name)
        if found is None:
            raise MissingEnvironmentError(f"{piece} is not set; export {name} and try again")
        remember([found])
        inside = text.lstrip()[:1] == "{"
        pieces.append(json.dumps(found)[1:-1] if inside and not is_reference(text) else found)
    return "".join(pieces)


def hide(name: str, value: str) -> str:
    """The value of a variable or flag with references for what is secret in it.

    That is all of it if the name says so, or if it is a URL with a password; of a JSON object the
    values whose keys say so.
    """
    if is_secret_name(name) or has_user_info(value):
        return keep(name, value)
    if value.lstrip().startswith("{"):
        try:
            document = json.loads(value)
        except (ValueError, RecursionError):
            return value
        hidden = _hidden(document, 0)
        return value if hidden == document else json.dumps(hidden)
    return value


def _hidden(value: Any, depth: int) -> Any:
    if isinstance(value, dict) and depth < 64:
        return {
            key: hide(key, inner) if isinstance(inner, str) else _hidden(inner, depth + 1)
            for key, inner in value.items()
        }
    if isinstance(value, list) and depth < 64:
        return [_hidden(inner, depth + 1) for inner in value]
    return value
