"""Joins a Ray cluster for the time of a command, or starts one of this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from packaging.version import Version

from autotune.core import MissingEnvironmentError
from autotune.machine.environment import exported
from autotune.util import secret

NAMESPACE = "autotune"
_ANSWER_S = 5.0
_GONE_S = 30.0
"""A head whose state lies in Redis comes back under its address, and Ray waits a minute."""
_ASKS = "2.52"
"""The first Ray that asks for a token; older ones ignore ``RAY_AUTH_MODE`` and let anybody in."""


_QUIET = {"RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}
"""Of a cluster that is ours. With Ray's own niceness, 15, whatever else runs would be measured as
ours; and Ray kills a worker where 95 % of the memory are used, which a server on unified memory is
meant to, and which our guard watches (``machine/guard.py``)."""


@contextlib.contextmanager
def connected(where: str, on_gone: Callable[[str], object] | None = None) -> Iterator[None]:
    """Be connected to a cluster within the block.

    A cluster that was joined goes on afterwards; one of this machine ends.

    Args:
        where: ``local`` starts one of this machine, to which nobody else is let; ``auto`` joins
            that of ``RAY_ADDRESS``, or the one that runs on this machine; else HOST:PORT.
        on_gone: told, in another thread, that the head of the cluster is gone for good; to end the
            process, for whatever waits for the cluster hangs until Ray ends it.

    Raises:
        MissingEnvironmentError: Ray is not installed, nobody answers there, or the cluster has
            another version of Ray or Python.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if where == "local":
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
    if where == "local" and "ray" not in sys.modules:  # which reads its mode when it is loaded
        _keep_others_out()
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingEnvironmentError(
            "--ray: Ray is not installed for this Python; in a clone: pip install '.[ray]'"
        ) from None
    if where == "local" and Version(ray.__version__) < Version(_ASKS):
        raise MissingEnvironmentError(
            f"--ray local: Ray {ray.__version__} listens on all interfaces and lets anybody in; "
            f"install {_ASKS} or newer, which asks for a token"
        )
    address = where
    if where == "auto":
        address = exported("RAY_ADDRESS") or "auto"
    if ":" in address:
        _check_answers(address)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if where == "local" else None,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()  # what has begun by then, processes of a local cluster too
        said = " ".join(str(error).split()) or type(error).__name__
        raise MissingEnvironmentError(f"--ray {where}: {said}") from None
    finally:
        for number, handler in before.items():  # Ray puts its own in place
            signal.signal(number, handler)
    try:
        with _messages_to_stderr(), _watched(on_gone):
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _watched(on_gone: Callable[[str], object] | None) -> Iterator[None]:
    """Have the head of the cluster watched within the block, if somebody wants to know."""
    if on_gone is None:
        yield
        return
    import ray  # noqa: PLC0415 - an extra

    head, ended = Head(ray.get_runtime_context().gcs_address), threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            try:
                head.check()
            except MissingEnvironmentError as error:
                on_gone(str(error))
                return

    threading.Thread(target=watch, name="head of the cluster", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextlib.contextmanager
def _messages_to_stderr() -> Iterator[None]:
    """Have what Ray says of its nodes printed on stderr: stdout is for results, and for --json.

    Of each message the first line: of a raylet that died the rest is its state and its log.
    """
    from ray._private import worker  # noqa: PLC0415 - an extra

    printed: Any = worker.print_to_stdstream

    def print_as_error(data: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [str(line).partition("\n")[0] for line in data["lines"]]
        printed({**data, "lines": lines, "is_err": True}, ignore_prefix)

    worker.print_to_stdstream = print_as_error
    try:
        yield
    finally:
        worker.print_to_stdstream = printed


def _keep_others_out() -> None:
    """Have Ray ask for a token that only our processes have: it listens on all interfaces."""
    if exported("RAY_AUTH_MODE") is None:
        token = secrets.token_hex(32)
        secret.remember([token])
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)


def _place(address: str) -> tuple[str, int]:
    """The host and the port of HOST:PORT.

    Raises:
        MissingEnvironmentError: it is of another form.
    """
    found = re.fullmatch(r"([^/]+):(\d+)", address)
    if found is None:
        raise MissingEnvironmentError(
            f"--ray {address}: expected local, auto or HOST:PORT, such as 192.168.0.10:6379"
        )
    return found[1].strip("[]"), int(found[2])


class Head:
    """The head of the cluster that we are connected to, which may go away.

    Ray waits a minute for it, and then ends the process with its own words and exit code 1.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Take its address, HOST:PORT, and a clock in seconds."""
        self._place, self._clock = _place(address), clock
        self._heard = self._asked = clock()

    def check(self) -> None:
        """See, every few seconds, that it is there.

        Raises:
            MissingEnvironmentError: it has not been for half a minute.
        """
        now = self._clock()
        if now - self._asked < _ANSWER_S:
            return
        self._asked = now
        try:
            socket.create_connection(self._place, 1.0).close()
            self._heard = now
        except OSError as error:
            if now - self._heard > _GONE_S:
                raise MissingEnvironmentError(
                    f"--ray: the head of the cluster ({':'.join(map(str, self._place))}) is gone "
                    f"({error.strerror or error}); what was learnt is kept, and the same command "
                    "goes on once it is back"
                ) from None


_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a connection of HTTP/2, and so of gRPC, begins: preface and no settings (RFC 9113, 3.4)."""


def _check_answers(address: str) -> None:
    """See that a server of Ray's kind answers, which Ray itself would wait minutes for.

    Raises:
        MissingEnvironmentError: none does, or it is no HOST:PORT.
    """
    place = _place(address)
    try:
        with socket.create_connection(place, _ANSWER_S) as there:
            if exported("RAY_USE_TLS") == "1":
                return
            there.sendall(_HELLO)
            said = there.recv(9)
        if said[3:4] != _HELLO[27:28]:  # it sends its settings, too
            raise OSError(f"what listens is no Ray: {said!r}")
    except (OSError, OverflowError) as error:
        raise MissingEnvironmentError(
            f"--ray {address}: nobody answers there ({error}); is `ray start --head` running?"
        ) from None
