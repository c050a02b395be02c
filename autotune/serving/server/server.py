"""A vLLM server from its settings to its end: the command line, the start, the health, the stop.

A :class:`Launcher` starts one (``launchers.py``); ``failures.py`` says why one does not serve.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from autotune.core import AutotuneError
from autotune.machine.guard import Fall, MemoryGuard
from autotune.serving.server.capture import capture_args
from autotune.serving.server.failures import FailureKind, ServerFailure, classify
from autotune.serving.server.web import fetch
from autotune.util import edge

_POLL_S = 0.25
_PORT_TRIES = 3
_NAME_CHARS = 4096
"""Of a model: a path, where it has no name."""
_TRIES: dict[FailureKind | None, int] = {
    FailureKind.PORT_TAKEN: _PORT_TRIES,
    FailureKind.MEMORY_CHANGED: 2,
}
_MEMORY_WAIT_S = 5.0
"""Until what gave memory back has given back all."""


@dataclass(frozen=True)
class ServeSettings:
    """What a vLLM server is started with; None leaves the choice to vLLM.

    Attributes:
        model: a folder or a hub id.
        speculative: the value of ``--speculative-config``; None serves without speculation.
        kv_cache_dtype: such as ``auto`` or ``fp8``.
        gpu_memory_utilization: share of the device's memory, above 0, at most 1.
        extra_args: further arguments of ``vllm serve``, as given by the user.
        env: environment variables of the server, added to ours; such as
            ``VLLM_TUNED_CONFIG_FOLDER``.
        capture: tokens up to which CUDA graphs are captured (``capture.py``).
        captured: gammas whose decoding batches have graphs besides.
    """

    model: str
    speculative: Mapping[str, Any] | None = None
    kv_cache_dtype: str | None = None
    gpu_memory_utilization: float | None = None
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    capture: int | None = None
    captured: tuple[int, ...] = ()


def serve_args(settings: ServeSettings, host: str, port: int) -> list[str]:
    """The arguments of ``vllm serve``; what the user gave comes last, so that it wins."""
    args = [settings.model, "--host", host, "--port", str(port)]
    if settings.speculative is not None:
        args += ["--speculative-config", json.dumps(dict(settings.speculative))]
    if settings.kv_cache_dtype is not None:
        args += ["--kv-cache-dtype", settings.kv_cache_dtype]
    if settings.gpu_memory_utilization is not None:
        args += ["--gpu-memory-utilization", f"{settings.gpu_memory_utilization:g}"]
    if settings.capture is not None:
        most, config = settings.capture, settings.speculative
        args += capture_args(most, config, settings.extra_args, settings.captured)
    return [*args, *settings.extra_args]


class ServerFailedError(AutotuneError):
    """A server did not come up; ``failure`` says why."""

    def __init__(self, failure: ServerFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Handle(Protocol):
    """A server that was launched, whether it serves yet or not."""

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""

    @property
    def log(self) -> Path | None:
        """The file with its standard output and error; None where we do not have it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What every request to it carries."""

    @property
    def model(self) -> str | None:
        """Which of the models that it serves is meant; None for the first."""

    def poll(self) -> int | None:
        """Its exit status (128 plus a signal's number), None while it runs."""

    def is_ours(self) -> bool:
        """Whether the one who answers at :attr:`url` is the server launched, not a stranger."""

    def memory_bytes(self) -> int | None:
        """Resident host memory of all its processes; None where that cannot be seen."""

    def kill(self) -> subprocess.Popen[bytes] | None:
        """Kill it at once, from whichever thread; gives the command that does so, if there is one.

        :meth:`stop` is still to be called.
        """

    def stop(self) -> None:
        """End it with every process it started; does nothing the second time."""


class Launcher(Protocol):
    """A way to start servers."""

    @property
    def starts(self) -> bool:
        """Whether a launch starts one, which is what boots are counted by."""

    def as_json(self) -> dict[str, Any]:
        """What of it must be the same for two trials to be compared."""

    def shell_line(self, settings: ServeSettings) -> str:
        """What a user types to serve the settings."""

    def command(self, settings: ServeSettings, port: int) -> list[str]:
        """What would be run, for showing; empty where nothing is."""

    def launch(self, settings: ServeSettings, log: Path) -> Handle:
        """Start a server on a free port without waiting for it.

        Raises:
            MissingEnvironmentError: the program is not there.
        """


class Server:
    """A server that serves. Leaving the ``with`` block stops it.

    Attributes:
        url: where it answers, without a slash at the end.
        model: the name that requests give.
        context: the longest sequence it takes, in tokens; None if it does not say.
        start_seconds: wall seconds from the launch to the first healthy answer.
        log: its log file, if we have it.
        headers: what every request to it carries.
    """

    def __init__(
        self,
        handle: Handle,
        model: str,
        context: int | None,
        start_seconds: float,
        watched: _Watched | None = None,
    ) -> None:
        self._handle, self._watched = handle, watched
        self.url = handle.url
        self.log = handle.log
        self.headers = handle.headers
        self.model = model
        self.context = context
        self.start_seconds = start_seconds

    def failure(self, *, stalled: bool = False, timeout_s: float = 10.0) -> ServerFailure | None:
        """Why the server serves no longer; None if it does.

        Args:
            stalled: requests were not answered in time, whatever its health says: vLLM's
                ``/health`` stays good while a stopped engine keeps it waiting.
            timeout_s: seconds within which it must answer.
        """
        end = time.monotonic() + timeout_s
        while True:
            if self.fall is not None:
                return _fell(self.fall, self._handle)
            code = self._handle.poll()
            if code is not None:
                return classify(self.log, code, served=True)
            reply = fetch(f"{self.url}/health", timeout_s, self.headers)
            if reply is not None and reply.status == 200 and not stalled:
                return None
            if (reply is not None and reply.status == 200) or time.monotonic() >= end:
                return classify(self.log, None, served=True, hung=True)
            time.sleep(_POLL_S)  # a server whose engine died needs a moment to end

    @property
    def fall(self) -> Fall | None:
        """Why the guard of the host's memory ended it; None while it has not."""
        return None if self._watched is None else self._watched.fall

    def memory_bytes(self) -> int | None:
        """Resident host memory of all its processes, in bytes; None where it cannot be seen."""
        return self._handle.memory_bytes()

    def stop(self) -> None:
        """End the server and every process it started."""
        _end(self._handle, self._watched)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Watched:
    """A server that was launched, under a guard of the host's memory."""

    def __init__(self, handle: Handle, guard: MemoryGuard) -> None:
        self._stack = ExitStack()
        self._seen = self._stack.enter_context(guard.watch("the server", handle.kill))

    @property
    def fall(self) -> Fall | None:
        return self._seen.fall

    def close(self) -> None:
        self._stack.close()


def _end(handle: Handle, watched: _Watched | None) -> None:
    try:
        handle.stop()
    finally:
        if watched is not None:
            watched.close()


def _fell(fall: Fall, handle: Handle) -> ServerFailure:
    return ServerFailure(FailureKind.HOST_MEMORY, str(fall), handle.poll(), handle.log)


def _identity(handle: Handle, timeout_s: float) -> tuple[str, int | None] | None:
    """Name and context length of the model meant among those listed (``/v1/models``)."""
    reply = fetch(f"{handle.url}/v1/models", timeout_s, handle.headers)
    if reply is None or reply.status != 200:
        return None
    try:
        listed = edge.parse_json(reply.text)["data"]
        meant = next(one for one in listed if handle.model in {None, one["id"]})
        length = meant.get("max_model_len")
        context = None if length is None else edge.whole(length, "max_model_len", 1)
        return edge.text(meant["id"], "id", _NAME_CHARS), context
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return None


def _wait(handle: Handle, timeout_s: float) -> tuple[str, int | None]:
    """Wait until the server serves.

    Raises:
        ServerFailedError: it ended, or did not answer in time.
    """
    end = time.monotonic() + timeout_s
    while True:
        reply = fetch(f"{handle.url}/health", min(5.0, timeout_s), handle.headers)
        code = handle.poll()
        if code is not None:
            raise ServerFailedError(classify(handle.log, code, served=False))
        if reply is not None and reply.status == 200 and handle.is_ours():
            known = _identity(handle, min(5.0, timeout_s))
            if known is not None:
                return known
        if time.monotonic() >= end:
            raise ServerFailedError(classify(handle.log, None, served=False, hung=True))
        time.sleep(_POLL_S)


def start(
    launcher: Launcher,
    settings: ServeSettings,
    log: Path,
    timeout_s: float,
    guard: MemoryGuard | None = None,
) -> Server:
    """Start a server and wait until it serves; see :class:`Launched`.

    Raises:
        ServerFailedError: it does not serve; nothing of it runs any more.
        MissingEnvironmentError: the program is not there.
    """
    return Launched(launcher, settings, log, timeout_s, guard).wait()


class Launched:
    """A server that was launched; several that were come up at the same time.

    Leaving the ``with`` block ends it, whether it serves by then or not.
    """

    def __init__(
        self,
        launcher: Launcher,
        settings: ServeSettings,
        log: Path,
        timeout_s: float,
        guard: MemoryGuard | None = None,
    ) -> None:
        """Launch it.

        Args:
            launcher: how.
            settings: what.
            log: the file for its output; each attempt begins it anew.
            timeout_s: wall seconds from launch to the first healthy answer.
            guard: of the host's memory; ends the server, while it starts and later, where that
                falls short.

        Raises:
            MissingEnvironmentError: the program is not there.
        """
        self._launcher, self._settings, self._log = launcher, settings, log
        self._timeout_s, self._guard = timeout_s, guard
        self._launch()

    def _launch(self) -> None:
        self._began = time.monotonic()
        self._handle = self._launcher.launch(self._settings, self._log)
        self._watched = None if self._guard is None else _Watched(self._handle, self._guard)

    def wait(self) -> Server:
        """Wait until it serves.

        A port that somebody took between our look and the server's start is no failure of the
        settings: another one is tried, :data:`_PORT_TRIES` times in all. Neither is it one that
        memory was given back while vLLM measured what is free: it waits until that is over and
        tries again.

        Raises:
            ServerFailedError: it does not serve; nothing of it runs any more.
            MissingEnvironmentError: the program is not there.
        """
        attempt = 0
        while True:
            attempt += 1
            left = max(0.5, self._timeout_s - (time.monotonic() - self._began))
            try:
                model, context = _wait(self._handle, left)
            except BaseException as error:
                self.close()
                fall = None if self._watched is None else self._watched.fall
                if fall is not None and isinstance(error, ServerFailedError):
                    raise ServerFailedError(_fell(fall, self._handle)) from None
                kind = error.failure.kind if isinstance(error, ServerFailedError) else None
                if attempt >= _TRIES.get(kind, 1):
                    raise
                if kind is FailureKind.MEMORY_CHANGED:
                    time.sleep(_MEMORY_WAIT_S)
                    if self._guard is not None:
                        self._guard.settle()
                self._launch()
            else:
                took = time.monotonic() - self._began
                return Server(self._handle, model, context, took, self._watched)

    def close(self) -> None:
        """End it with every process it started; does nothing the second time."""
        _end(self._handle, self._watched)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
