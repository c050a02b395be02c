"""Runs the service: places, locks, the queue and the HTTP server, until a signal ends it."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from autotune.cli.requests import Serve
from autotune.core import BadInputError
from autotune.export.files import check_writable
from autotune.machine.devices import GpuInfo, detect_gpus
from autotune.machine.environment import visible_gpus
from autotune.store.database import database_path
from autotune.store.store import Store
from autotune.util import flags, lockfile
from autotune.util.secret import Secret, mask
from autotune.web.app import make_app
from autotune.web.connection import Connection
from autotune.web.gate import Gate, Names
from autotune.web.kinds import KINDS
from autotune.web.policy import Policy, parse_allow
from autotune.web.queue import Capacity
from autotune.web.runner import Runner, Settings
from autotune.web.service import Service
from autotune.web.token import make_token, read_token

TOKEN_FILE = "serve.token"  # noqa: S105 - a file's name
_MOST_CONNECTIONS = 512
_LAST_WORDS_S = 3


@dataclass(frozen=True)
class Place:
    """Where the service is.

    Attributes:
        url: of the page.
        token_file: what lets in.
        warnings: what the operator should know.
    """

    url: str
    token_file: Path
    warnings: tuple[str, ...] = ()


def run(request: Serve, said: Callable[[Place], None]) -> None:
    """Run the service until SIGTERM or Ctrl-C; jobs are then stopped and go on at the next start.

    Args:
        request: what the operator wants.
        said: is told where the service is, once it answers.

    Raises:
        AutotuneError: a place cannot be used, another service has it, or the token is missing.
    """
    root = request.root.absolute()
    check_writable(root, "--root")
    token, token_file = _token(request, root)
    policy = _policy(request, root)
    database = database_path(request.db)
    with ExitStack() as stack:
        listening = stack.enter_context(_listening(request.host, request.port))
        store = stack.enter_context(Store.open(f"sqlite:///{database}"))
        for path in (database.with_name(f"{database.name}.serve.lock"), root / "serve.lock"):
            stack.enter_context(lockfile.hold(path, datetime.now(UTC), _taken(path)))
        gpus, visible = _gpus()
        slots = tuple(str(gpu.index) for gpu in gpus) or ("",)
        settings = Settings(
            root,
            f"sqlite:///{database}",
            Capacity(slots, request.predictions),
            resume=request.resume,
        )
        runner = Runner(store.jobs(), settings, _say)
        service = Service(store, runner, policy, gpus, visible)
        port = listening.getsockname()[1]
        names = Names(port, names_of(request), any_address=not is_loopback(request.host))
        app = make_app(service, token, names)
        os.chdir(root)  # where jobs start: a path means the same to both
        runner.start()
        try:
            _serve(app, service, listening, lambda: said(_place(request, port, token_file)))
        finally:
            service.stopping = True
            runner.drain(flags.seconds(request.patience, "--patience"))


def config_of(gate: Gate) -> uvicorn.Config:
    """Tell uvicorn how to serve strangers."""
    return uvicorn.Config(
        gate,
        http=Connection,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        lifespan="off",
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )


def _serve(
    gate: Gate, service: Service, listening: socket.socket, ready: Callable[[], None]
) -> None:
    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Stop at a signal without raising it again: this is how the service ends well."""

            def stop(number: int, frame: object) -> None:  # noqa: ARG001
                service.stopping = self.should_exit = True

            before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    Server(config_of(gate)).run(sockets=[listening])


def _say(text: str) -> None:
    print(f"autotune: {mask(text)}", file=sys.stderr, flush=True)  # noqa: T201


def _token(request: Serve, root: Path) -> tuple[Secret, Path]:
    if request.token_file is not None:
        return read_token(request.token_file), request.token_file
    if not is_loopback(request.host):
        raise BadInputError(
            f"--host {request.host}: others reach it, so it needs --token-file FILE; make one with "
            "(umask 077; openssl rand -hex 32 > FILE)"
        )
    return make_token(root / TOKEN_FILE), root / TOKEN_FILE


def _policy(request: Serve, root: Path) -> Policy:
    fields = {name for kind in KINDS.values() for name, _ in kind.declared()}
    for folder in request.allow_path:
        if not folder.is_dir():
            raise BadInputError(f"--allow-path {folder}: no such folder")
    allow = parse_allow(request.allow, fields)
    return Policy(root, tuple(folder.absolute() for folder in request.allow_path), allow)


def _gpus() -> tuple[list[GpuInfo], str | None]:
    visible, here = visible_gpus(), detect_gpus()
    if visible is None:
        return here, visible
    wanted = {part.strip() for part in visible.split(",")}
    return [gpu for gpu in here if str(gpu.index) in wanted], visible


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_of(request: Serve) -> frozenset[str]:
    """Return the names, in lower case, that a request may call the service by."""
    names = {"127.0.0.1", "localhost", "::1", request.host.lower()}
    if not is_loopback(request.host):
        own = socket.gethostname().lower()
        names |= {own, f"{own}.local"}
    return frozenset(names | {name.lower() for name in request.host_name})


def _place(request: Serve, port: int, token_file: Path) -> Place:
    host = f"[{request.host}]" if ":" in request.host else request.host
    warnings: tuple[str, ...] = ()
    if not is_loopback(request.host):
        warnings = (
            "the token and everything else go unencrypted over the network; put a proxy with TLS "
            "before it, or use an ssh tunnel",
        )
    return Place(f"http://{host}:{port}/", token_file, warnings)


def _taken(path: Path) -> Callable[[str], BadInputError]:
    return lambda holder: BadInputError(
        f"{path}: {holder} serves here already; end it, or name another --root and --db"
    )


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInputError(
                f"port {port} of {host}: {reason}; name another with --port or --host, port 0 "
                "takes a free one"
            ) from None
        listening.listen(2048)
        yield listening
