"""A Python that has imported what takes long: each program that it is given runs in a fork of it.

Such a program is what ``python`` would run: a file, ``-m MODULE`` or ``-c TEXT`` with arguments. It
has its caller's files, folder and variables, but for those that are read at an import. Whoever
calls is a small process that ends as the program ends, and takes it along when it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # the one that calls is there at once: it imports little
    from collections.abc import Mapping
    from typing import Any


class Preloaded:
    """Pythons that have imported ever more.

    Each level, a name and its modules, is a fork of the one before.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], **levels: tuple[str, ...]) -> None:
        import subprocess
        import tempfile

        # The path of a socket has 108 characters at most.
        self._sockets = tempfile.TemporaryDirectory(prefix="preloaded-")
        self.log = folder / "preloaded.log"
        words = [f"{self._socket(name)}={','.join(wanted)}" for name, wanted in levels.items()]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *words],
                env={**os.environ, **env},
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,  # they end when it is closed, and so with us
                stdout=log,
                stderr=log,
            )

    def _socket(self, level: str) -> str:
        return f"{self._sockets.name}/{level}"

    def program(self, level: str) -> tuple[str, ...]:
        """What stands for ``python``."""
        return (sys.executable, "-S", "-E", __file__, self._socket(level))

    def close(self) -> None:
        """End them."""
        self._process.communicate()
        self._sockets.cleanup()


def serve(levels: list[str]) -> None:
    """Import, let a fork go on with the next level, and answer."""
    import importlib

    path, _, names = levels[0].partition("=")
    for name in names.split(","):
        importlib.import_module(name)
    if levels[1:] and os.fork() == 0:
        serve(levels[1:])
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen(16)
        Path(f"{path}.new").rename(path)
        while select.select([listener.fileno(), 0], [], [])[0] == [listener.fileno()]:
            caller, _ = listener.accept()
            with caller:
                if os.fork() == 0:
                    listener.close()
                    os._exit(look_after(caller))


def look_after(caller: socket.socket) -> int:
    """Run a program; it ends with its caller, and the caller with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    said, files, _, _ = socket.recv_fds(caller, 16, 3)
    with caller.makefile("rb") as rest:
        asked = json.loads(rest.read(int(said)))
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for number, file in enumerate(files):
            os.dup2(file, number)
        run(asked)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    select.select([ended, caller.fileno()], [], [])
    if not select.select([ended], [], [], 0)[0]:
        _end(child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _end(child)
    caller.sendall(b"%d" % (code if code >= 0 else 128 - code))
    return 0


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def run(asked: dict[str, Any]) -> None:
    """Be the program."""
    import runpy
    import traceback

    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    places = asked["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [place for place in places if place and place not in sys.path]
    code: Any = 1
    kind, *args = asked["args"]
    try:
        if kind == "-m":
            sys.argv = args
            runpy.run_module(args[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *args[1:]]
            exec(args[0], {"__name__": "__main__"})
        else:
            sys.argv = [kind, *args]
            runpy.run_path(kind, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def call(path: str, args: list[str]) -> int:
    """Have a program run; its exit status."""
    import time

    asked = {"args": args, "env": dict(os.environ), "cwd": str(Path.cwd())}
    text = json.dumps(asked).encode()
    end = time.monotonic() + 300
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.05)  # it still imports
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"%16d" % len(text)], [0, 1, 2])
        server.sendall(text)
        return int(server.recv(16) or 1)


if __name__ == "__main__":
    if "=" in sys.argv[1]:
        serve(sys.argv[1:])
        os._exit(0)  # what has been imported takes seconds to tidy up
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
