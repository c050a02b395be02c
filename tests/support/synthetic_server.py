"""``autotune serve`` itself, with jobs whose command is made up: arguments as after ``serve``."""

from __future__ import annotations

import functools
import sys

from autotune import cli
from autotune.web import serve
from autotune.web.runner import Settings

if __name__ == "__main__":
    program = (sys.executable, "-m", "tests.support.synthetic_service")
    vars(serve)["Settings"] = functools.partial(Settings, program=program)
    sys.argv = ["autotune", "serve", *sys.argv[1:]]
    cli.main()
