"""``autotune spec`` tunes servers, or measures one."""

from __future__ import annotations

from autotune.cli.requests import Spec


def spec(request: Spec) -> None:
    """Tune one target, compare several, or measure the server that runs at a URL."""
    if request.server is not None:
        from autotune.cli.remote import run_there  # noqa: PLC0415 - keeps `--help` fast

        run_there(request, "spec")
        return
    from autotune.cli import spec_runs  # noqa: PLC0415 - keeps `--help` fast

    if request.launcher == "url":
        spec_runs.measure(request)
    elif len(request.target) > 1:
        spec_runs.compare(request)
    else:
        spec_runs.tune(request)
