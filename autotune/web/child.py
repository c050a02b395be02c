"""A job's process: the ordinary command, which leaves its exit code behind and holds a lock.

``python -m autotune.web.child DESCRIPTOR FILE COMMAND …``: the lock on DESCRIPTOR tells the service
that the job runs, also a service that was started later; the kernel frees it whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path

from autotune.core import AutotuneError, ExitCode
from autotune.web.queue import CRASHED


def main() -> None:
    """Run the command of this process's arguments and write its exit code whole, or not at all."""
    descriptor, file = int(sys.argv[1]), Path(sys.argv[2])
    os.set_inheritable(descriptor, False)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid()}).encode(), 0)  # cleared by the service
    sys.argv = ["autotune", *sys.argv[3:]]
    code: int = CRASHED
    try:
        from autotune.cli import main as command  # noqa: PLC0415 - Ctrl-C may come before it

        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BaseException:  # noqa: BLE001 - a bug: the traceback is what we need
        traceback.print_exc()
    finally:
        from autotune.export.files import write_whole  # noqa: PLC0415

        # On a full disk the service still sees the code, unless it was started anew meanwhile.
        with contextlib.suppress(AutotuneError, OSError):
            write_whole(file, json.dumps({"exit_code": int(code)}).encode())
    sys.exit(code)


if __name__ == "__main__":
    main()
