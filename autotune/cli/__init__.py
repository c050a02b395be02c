"""The command line: parse, wire, print. No logic."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from autotune import __version__
from autotune.cli import (
    bundles,
    compare,
    explain,
    export,
    files,
    jobs,
    machine,
    moe,
    report,
    requests,
    serve,
    spec,
    studies,
    verify,
)
from autotune.cli.build import add_command
from autotune.core import AutotuneError, BadInputError, ExitCode, MissingEnvironmentError
from autotune.serving.server.secret_flags import hidden_arguments
from autotune.util.request import Request
from autotune.util.secret import mask, remember_environment

app = typer.Typer(
    name="autotune",
    help="Tune vLLM's fused-MoE kernels and speculation. Start with: autotune moe --device gb10",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
COMMANDS: tuple[tuple[type[Request], Callable[[Any], None]], ...] = (
    (requests.Moe, moe.moe),
    (requests.Export, export.export),
    (requests.Verify, verify.verify),
    (requests.Files, files.files),
    (requests.Compare, compare.compare),
    (requests.Explain, explain.explain),
    (requests.Spec, spec.spec),
    (requests.Studies, studies.studies),
    (requests.Show, studies.show),
    (requests.Report, report.report),
    (requests.Merge, bundles.merge),
    (requests.Dashboard, report.dashboard),
    (requests.Serve, serve.serve),
    (requests.Jobs, jobs.jobs),
    (requests.Devices, machine.devices),
    (requests.Doctor, machine.doctor),
)
"""What each command is asked, and what it does; in the order of ``autotune --help``."""

for _request, _run in COMMANDS:
    add_command(app, _request, _run)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autotune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


_stopping = False


def _interrupt(*_: object) -> NoReturn:
    """Answer a person at once: a server or a container may take half a minute to stop."""
    global _stopping  # noqa: PLW0603 - a signal handler has nowhere else to keep it
    said = b"stopping; what is finished is saved"
    if _stopping:
        said = b"leaving; what was started here ends in the background, within two minutes"
    _stopping = True
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\nautotune: " + said + b"\n")
    raise KeyboardInterrupt


def _answer_signals() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a background job has it
        signal.signal(signal.SIGINT, _interrupt)


def main() -> None:
    """Entry point: every failure is one line on stderr and a documented exit code."""
    _answer_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no µ is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_text(sys.argv)
        remember_environment(os.environ)
        sys.argv[1:] = hidden_arguments(sys.argv[1:])
        code = app(standalone_mode=False)
        if code == ExitCode.INTERRUPTED:  # Typer makes this of Ctrl-C, without a word
            raise KeyboardInterrupt
    except AutotuneError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(
            "interrupted; every finished trial is saved, the same command goes on from there",
            ExitCode.INTERRUPTED,
        )
    except SystemExit:
        # Typer and rich end so when the reader went away (`autotune … | head`); keep Python from
        # complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = ExitCode.DONE
    except OSError as error:
        code = _fail(
            f"{error.filename or 'I/O'}: {error.strerror or error}",
            MissingEnvironmentError.exit_code,
        )
    except Exception as error:
        # Typer's usage errors carry a message and an exit code of 2; anything else is a bug, and
        # then the traceback is what we need.
        if not hasattr(error, "format_message"):
            raise
        code = _fail(error.format_message() or "name a command", ExitCode.BAD_INPUT)
    sys.exit(code or ExitCode.DONE)


def _check_text(arguments: list[str]) -> None:
    """The command goes into the database and into files, which hold text only."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise BadInputError(f"argument {argument!a} is not UTF-8 text") from None


def _fail(message: str, code: ExitCode) -> ExitCode:
    """One line, whatever a path or a message of the system holds; none where all is said."""
    if not message:
        return code
    line = mask(" ".join(part.strip() for part in message.splitlines()))
    typer.echo(f"autotune: {''.join(c if c.isprintable() else '?' for c in line)}", err=True)
    return code
