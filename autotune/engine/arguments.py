"""Reads the arguments of ``vllm serve``, as its parser does."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ALIASES = {
    "-q": "--quantization",
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-sc": "--speculative-config",
    "--device-memory-utilization": "--gpu-memory-utilization",
}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def is_flag(arg: str, flag: str) -> bool:
    """Whether an argument gives ``flag``, as vLLM's parser reads it.

    That takes underscores, short names, ``--flag=value``, ``--flag.key``, and any beginning of a
    name that no other flag has (vLLM 0.32 ``utils/argparse_utils.py``; its own log proposes
    ``--kv-cache-memory``).
    """
    name = full_name(arg)
    return name == flag or (name.startswith("--") and len(name) > 5 and flag.startswith(name))


def full_name(arg: str) -> str:
    """The flag that an argument gives, in its long form with hyphens, without its value."""
    name = re.split(r"[=.]", arg, maxsplit=1)[0]
    name = name.replace("_", "-") if name.startswith("--") else name
    return _ALIASES.get(name, name)


def is_given(args: Sequence[str], flag: str) -> bool:
    """Whether ``flag`` is among the arguments."""
    return any(is_flag(arg, flag) for arg in args)


def argument_value(args: Sequence[str], flag: str) -> str | None:
    """The last value of ``flag``, given as ``--flag value`` or ``--flag=value``; None without."""
    found = None
    for index, arg in enumerate(args):
        if not is_flag(arg, flag):
            continue
        _, equals, value = arg.partition("=")
        if equals:
            found = value
        elif index + 1 < len(args):
            found = args[index + 1]
    return found


def whole_value(args: Sequence[str], flag: str) -> int | None:
    """A flag's whole number; None where it is not given, or is none, such as ``auto``."""
    return whole_of(argument_value(args, flag) or "")


def whole_of(text: str) -> int | None:
    """Read a whole number as vLLM does: 4k is 4000, 4K 4096, 25.6k 25600; None if it is none."""
    found = re.fullmatch(r"(\d{1,18})(\.\d{1,9}(?=[kmgt]))?([kmgtKMGT]?)", text.strip(), re.ASCII)
    if found is None:
        return None
    number = float(found[1] + found[2]) if found[2] else int(found[1])
    return int(number * _UNITS[found[3]])
