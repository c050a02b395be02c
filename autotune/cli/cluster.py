"""A cluster is joined or started, and its nodes are asked: the terminal says what it waits for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from autotune.cli.consoles import err
from autotune.cluster.connect import connected
from autotune.core import MissingEnvironmentError


@contextmanager
def on_cluster(where: str) -> Iterator[None]:
    """Be connected to the cluster of ``--ray`` within the block; see :func:`connected`."""
    local = "starting Ray on this machine, which takes seconds"
    with ExitStack() as stack:
        with waiting(f"--ray {where}: {local if where == 'local' else 'joining the cluster'}"):
            stack.enter_context(connected(where, _end))
        yield


def _end(why: str) -> None:
    """End the process at once, as ``kill -9`` would, but with a line and its exit code."""
    err.show_cursor()
    err.print(f"autotune: {escape(why)}", soft_wrap=True)
    os._exit(MissingEnvironmentError.exit_code)


@contextmanager
def waiting(said: str) -> Iterator[None]:
    """Say on a terminal what takes its time, with the seconds, until the block ends."""
    if not err.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        bar.add_task(escape(said), total=None)
        yield
