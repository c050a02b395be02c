"""A server that runs already: what it says of itself, before it is measured.

It has its settings, and they are not ours to change: it is one setting, which is measured and
compared with nothing. What cannot be asked over HTTP (other flags, the GPU) stays unknown.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.serving.measure.client import Load, run_load
from autotune.serving.measure.metrics import parse_metrics
from autotune.serving.measure.prompts import Prompt
from autotune.serving.server.launchers import UrlLauncher
from autotune.serving.server.web import Reply, UnansweredError, get
from autotune.util import edge, secret

LOOK_S = 20.0
_NAME_CHARS = 500
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_STARTED = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Existing:
    """What a running server says of itself.

    Attributes:
        url: its root, without ``/v1``.
        model: the name that requests give.
        context: the longest sequence it takes, in tokens; None if it does not say.
        version: of vLLM; None if it does not say.
        gamma: tokens drafted per step at most, 0 without speculation, by the positions that its
            counters have; None where ``/metrics`` is closed.
        started: when its process began, in seconds since 1970; None if it does not say.
        cache: the labels of ``vllm:cache_config_info``.
        running: requests of others at the moment of looking.
        chat: whether it answers chat requests.
    """

    url: str
    model: str
    context: int | None
    version: str | None
    gamma: int | None
    started: float | None
    cache: Mapping[str, str] = field(default_factory=dict)
    running: int = 0
    chat: bool = True

    def as_json(self) -> dict[str, Any]:
        """What tells this server, as started, from another; as JSON values."""
        return {
            "name": f"vLLM {self.version or 'of unknown version'}",
            "model": self.model,
            "context": self.context,
            "version": self.version,
            "gamma": self.gamma,
            "started": self.started,
            "cache": dict(sorted(self.cache.items())),
        }

    @property
    def speculation(self) -> str:
        """For people."""
        if self.gamma is None:
            return "speculation unknown, for /metrics does not answer"
        return f"speculation, gamma {self.gamma}" if self.gamma else "no speculation"


def parse_headers(texts: Sequence[str]) -> dict[str, str]:
    """``NAME: VALUE`` texts to headers; of two with one name the last counts.

    Raises:
        BadInputError: not of that form. The text, which may be secret, is not repeated.
    """
    found = {}
    for text in texts:
        name, colon, value = text.partition(":")
        value = value.strip()
        if not colon or not _TOKEN.fullmatch(name) or not value:
            raise BadInputError(
                "--header or AUTOTUNE_HEADER: expected 'NAME: VALUE', such as "
                "'Authorization: Bearer …' (what was given is not shown: it may be secret)"
            )
        if not (value.isascii() and value.isprintable()):
            raise BadInputError(f"--header {name}: its value holds what no HTTP header can")
        found[name] = value
    secret.remember(secret.of_headers(found))
    return found


def parse_url(text: str) -> str:
    """The URL, if it is one that may stand in reports.

    Raises:
        BadInputError: not http or https, no host, a password, or a query.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        said = "is no URL" if "@" in text else str(error)  # which may quote a password
        raise BadInputError(f"--url: {said}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise BadInputError(
            "--url: holds a user, a password or a query, which would stand in reports; give "
            "credentials as --header or in AUTOTUNE_HEADER"
        )
    if parts.scheme not in {"http", "https"} or not host or not text.isprintable() or " " in text:
        shown = secret.without_user_info(text)
        raise BadInputError(f"--url {shown}: expected such as http://127.0.0.1:8000")
    return text


def is_exposed(url: str, headers: Mapping[str, str]) -> bool:
    """Whether credentials would go over a network in clear text."""
    parts = urlsplit(url)
    if parts.scheme == "https" or not headers:
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname != "localhost"


def look(launcher: UrlLauncher, prompts: Sequence[Prompt], target: str | None) -> Existing:
    """Ask the server what it is.

    Args:
        launcher: its URL and headers.
        prompts: the first is sent once, to see which requests it takes.
        target: the model that must be served; None takes the first listed.

    Raises:
        MissingEnvironmentError: nobody answers, or it does not serve yet.
        BadInputError: no vLLM server, credentials refused, or another model.
    """
    url = launcher.root
    _check(_ask(launcher, "/health"), launcher, "/health")
    model, context = _model(launcher, target)
    version = _ask(launcher, "/version")
    text = _ask(launcher, "/metrics")
    gamma, cache, running, started = _counters(text.text if text.status == 200 else None)
    return Existing(
        url,
        model,
        context,
        _version(version),
        gamma,
        started,
        cache,
        running,
        _chats(launcher, model, prompts),
    )


def _ask(launcher: UrlLauncher, path: str) -> Reply:
    try:
        return get(f"{launcher.root}{path}", LOOK_S, launcher.headers)
    except UnansweredError as error:
        raise MissingEnvironmentError(
            f"--url {launcher.root}: nobody answers ({error}); is the server up?"
        ) from None


def _check(reply: Reply, launcher: UrlLauncher, path: str) -> None:
    where = f"--url {launcher.root}: {path} answers HTTP {reply.status}"
    if reply.status in {401, 403}:
        sent = "these credentials" if launcher.headers else "requests without credentials"
        raise BadInputError(
            f"{where}: it refuses {sent}; give --header 'Authorization: Bearer …' or "
            "AUTOTUNE_HEADER"
        )
    if reply.status in {502, 503, 504}:
        raise MissingEnvironmentError(f"{where}: it does not serve (yet)")
    if 300 <= reply.status < 400:
        raise BadInputError(f"{where}: it redirects, which is not followed; give the server's URL")
    if reply.status != 200:
        raise BadInputError(f"{where}: that is no vLLM server, or not its root")


def _model(launcher: UrlLauncher, target: str | None) -> tuple[str, int | None]:
    reply = _ask(launcher, "/v1/models")
    _check(reply, launcher, "/v1/models")
    try:
        listed = {
            edge.text(one["id"], "id", _NAME_CHARS): one.get("max_model_len")
            for one in edge.parse_json(reply.text)["data"]
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        listed = {}
    if not listed:
        raise BadInputError(f"--url {launcher.root}: /v1/models lists no model; is it vLLM's?")
    if target is not None and target not in listed:
        raise BadInputError(
            f"--url {launcher.root}: serves {', '.join(listed)}, not {target}; name one of them "
            "as --target, or none for the first"
        )
    name = next(iter(listed)) if target is None else target
    length = listed[name]
    fits = isinstance(length, int) and not isinstance(length, bool) and 0 < length < edge.MOST
    return name, length if fits else None


def _version(reply: Reply) -> str | None:
    try:
        if reply.status != 200:
            return None
        return edge.text(edge.parse_json(reply.text)["version"], "version", _NAME_CHARS)
    except (ValueError, LookupError, TypeError):
        return None


def _counters(
    text: str | None,
) -> tuple[int | None, Mapping[str, str], int, float | None]:
    """gamma, cache labels, requests running and start time from the text of ``/metrics``."""
    if text is None:
        return None, {}, 0, None
    started = _STARTED.search(text)
    try:
        found = parse_metrics(text)
        when = edge.number(float(started[1]), "start") if started else None
    except (ValueError, LookupError):
        return None, {}, 0, None
    if not found.cache and found.drafts is None:  # somebody else's metrics
        return None, {}, found.running, when
    return found.drafts.gamma if found.drafts else 0, found.cache, found.running, when


def _chats(launcher: UrlLauncher, model: str, prompts: Sequence[Prompt]) -> bool:
    """Whether chat requests are answered, else plain completions.

    Raises:
        BadInputError: neither.
    """
    errors: list[str] = []
    for chat in (True, False):
        load = Load(
            launcher.root,
            model,
            prompts[:1],
            requests=1,
            concurrency=1,
            max_tokens=2,
            chat=chat,
            timeout_s=120.0,
            headers=launcher.headers,
        )
        failed = run_load(load).errors()
        if not failed:
            return chat
        errors += failed
    raise BadInputError(f"--url {launcher.root}: no request is answered: {errors[0]}")
