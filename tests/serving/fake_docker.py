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
IMAGE_ID = "5eed" * 16
FACTS = {
    "python": [3, 12, 3],
    "executable": "/usr/bin/python3",
    "packages": {"vllm": "0.33.0", "triton": "3.8.0"},
    "cuda": "13.0",
    "has_vllm": True,
    "has_pip": True,
}
ANSWERS = {
    "version": "27.0\n",
    "--version": "Docker version 27.0.3, build 7d4bcd8\n",
    "info": '["name=seccomp,profile=builtin"]\n',
    "image": json.dumps([{"Id": f"sha256:{IMAGE_ID}", "Config": {"User": "", "Env": ["A=b"]}}]),
}
"""What it says without being a container."""


def main() -> None:
    folder, args = Path(os.environ["FAKE_DOCKER"]), sys.argv[1:]
    if args[0] in ANSWERS:
        sys.stdout.write(ANSWERS[args[0]])
        return
    with (folder / "calls").open("a") as file:
        file.write(json.dumps(args) + "\n")
    if args[0] != "run":
        return
    if args[args.index("--entrypoint") + 1] == "sh":  # what is in the image?
        sys.stdout.write(f"autotune-image {json.dumps(FACTS)}\n")
        return
    (folder / "pid").write_text(str(os.getpid()))
    published = args[args.index("--publish") + 1]
    program, *inner = args[args.index(IMAGE) + 1 :]
    if [args[args.index("--entrypoint") + 1], program] != ["vllm", "serve"]:
        raise SystemExit("an image has an entry point of its own")
    inner[inner.index("--port") + 1] = published.split(":")[1]
    given = {args[i + 1].partition("=")[0]: args[i + 1] for i, a in enumerate(args) if a == "--env"}
    for name, text in given.items():
        if "=" in text:  # docker takes the others from its own environment
            os.environ[name] = text.partition("=")[2]
    program = str(Path(__file__).with_name("fake_serving.py"))
    os.execv(sys.executable, [sys.executable, program, "serve", *inner])


if __name__ == "__main__":
    main()
