"""Stands in for ``docker``: records its arguments and runs fake_serving.py as the container.

Environment ``FAKE_DOCKER`` is a folder that gets ``calls`` (a JSON list of arguments a line) and
``pid``. Containers see nothing of their mounts: paths must be those of this machine.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

IMAGE = "vllm/vllm-openai:test"


def main() -> None:
    folder, args = Path(os.environ["FAKE_DOCKER"]), sys.argv[1:]
    if args[0] == "version":
        sys.stdout.write("27.0\n")
        return
    with (folder / "calls").open("a") as file:
        file.write(json.dumps(args) + "\n")
    if args[0] != "run":
        return
    (folder / "pid").write_text(str(os.getpid()))
    published = args[args.index("--publish") + 1]
    inner = args[args.index(IMAGE) + 1 :]
    inner[inner.index("--port") + 1] = published.split(":")[1]
    given = {args[i + 1].partition("=")[0]: args[i + 1] for i, a in enumerate(args) if a == "--env"}
    for name, text in given.items():
        if "=" in text:  # docker takes the others from its own environment
            os.environ[name] = text.partition("=")[2]
    program = str(Path(__file__).with_name("fake_serving.py"))
    os.execv(sys.executable, [sys.executable, program, "serve", *inner])


if __name__ == "__main__":
    main()
