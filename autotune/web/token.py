"""The token that proves who asks, and the cookie that stands for it in a browser.

The token lies in a file that its owner alone can read. A cookie is signed with it and with a key
that lies beside the jobs: it outlives the service, and ends with the token or when somebody logs
out.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from autotune.core import BadInputError
from autotune.util.edge import EdgeError, bad_input, read_text
from autotune.util.secret import Secret, remember

COOKIE = "autotune_session"
COOKIE_S = 30 * 24 * 3600
_SHORTEST = 16
_LONGEST = 512


def read_token(path: Path) -> Secret:
    """Read the token of a file that nobody else can read or write.

    Raises:
        BadInputError: it cannot be read, others can, or it holds no token.
    """
    try:
        found = path.stat()
        text = read_text(path, 4096).strip()
    except (OSError, EdgeError) as error:
        raise bad_input(path, error) from None
    if found.st_uid not in {0, os.getuid()} or stat.S_IMODE(found.st_mode) & 0o077:
        raise BadInputError(f"{path}: other users can read or change it; chmod 600 {path}")
    if not _SHORTEST <= len(text) <= _LONGEST or not text.isascii() or not text.isprintable():
        raise BadInputError(
            f"{path}: expected one line of {_SHORTEST} to {_LONGEST} ASCII characters, as "
            "`openssl rand -hex 32` makes it"
        )
    if " " in text:
        raise BadInputError(f"{path}: the token holds a space, which no header takes")
    remember([text])
    return Secret(text)


def make_token(path: Path) -> Secret:
    """Read the token of this file, made first if it is not there.

    Raises:
        BadInputError: as :func:`read_token`; or it cannot be made.
    """
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_private(path, secrets.token_urlsafe(32) + "\n")
        except OSError as error:
            raise BadInputError(f"{path}: {error.strerror}; name another --root") from None
    return read_token(path)


def _write_private(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w") as file:
        file.write(text)


class Doorman:
    """Knows who may come in."""

    def __init__(self, token: Secret, now: Callable[[], float], sessions: Path) -> None:
        """Take the token, a clock that tells Unix seconds, and the file of the sessions' key."""
        self._token, self._now, self._file = token, now, sessions
        try:
            self._key = self._keyed(read_text(sessions, 64))
        except (OSError, EdgeError):
            self.log_out()

    def log_out(self) -> None:
        """End every session: no cookie that was given so far is good any more."""
        made = secrets.token_hex(32)
        self._key = self._keyed(made)
        # Where it cannot be kept, sessions end with this process too.
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
            _write_private(self._file, made)

    def _keyed(self, session: str) -> bytes:
        text = f"autotune cookie\0{session}\0{self._token.reveal()}"
        return hashlib.sha256(text.encode()).digest()

    def knows(self, given: str) -> bool:
        """Tell whether this is the token, in a time that does not depend on how much of it is."""
        # Digests are of one length: compare_digest would tell the token's by its time.
        known, asked = (
            hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
            for text in (self._token.reveal(), given)
        )
        return hmac.compare_digest(known, asked)

    def cookie(self) -> str:
        """Make the value of a cookie, good for :data:`COOKIE_S`."""
        signed = f"{int(self._now()) + COOKIE_S}.{secrets.token_urlsafe(12)}"
        return f"{signed}.{self._sign(signed)}"

    def accepts(self, cookie: str) -> bool:
        """Tell whether a cookie is ours and still good."""
        signed, _, signature = cookie.rpartition(".")
        until = signed.partition(".")[0]
        if not until.isascii() or not until.isdecimal() or len(until) > 12:
            return False
        right = hmac.compare_digest(
            self._sign(signed).encode(), signature.encode("utf-8", "surrogatepass")
        )
        return right and int(until) > self._now()

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), "sha256").hexdigest()
