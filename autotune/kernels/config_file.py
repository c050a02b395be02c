"""vLLM's fused-MoE configuration file: byte-exact writing, reading, and its look-up rule.

Source: vLLM fused_moe.py (``get_moe_configs``, ``try_get_optimal_moe_config``) and
benchmarks/kernels/benchmark_moe.py (``save_configs``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from autotune.core import BadInputError, Candidate, Scalar
from autotune.kernels.moe.shape import MoeShape
from autotune.util import edge

T = TypeVar("T")

FIELDS = (
    "BLOCK_SIZE_M",
    "BLOCK_SIZE_N",
    "BLOCK_SIZE_K",
    "GROUP_SIZE_M",
    "num_warps",
    "num_stages",
)
"""Order in which vLLM's tuner writes the fields of a row."""


LIMIT = edge.MIB
"""Bytes. The largest file that vLLM ships has some 5 KiB."""
MOST_ROWS = 4096
_DIGITS = 20


def render(rows: Mapping[int, Candidate], triton_version: str) -> bytes:
    """The file's bytes: ``triton_version`` first, M ascending, indent 4, newline at the end.

    Args:
        rows: the configuration of each M (tokens).
        triton_version: version that the rows were tuned with; vLLM drops it unchecked.

    Raises:
        ValueError: no rows, or an M below 1.
    """
    if not rows or min(rows) < 1:
        raise ValueError("a configuration file needs at least one row, with M of at least 1")
    document: dict[str, object] = {"triton_version": triton_version}
    for m in sorted(rows):
        document[str(m)] = {name: rows[m].int(name) for name in FIELDS}
    return (json.dumps(document, indent=4) + "\n").encode()


def parse(data: bytes, where: str) -> dict[int, Candidate]:
    """Rows of a file in file order, as vLLM reads them.

    Args:
        data: the file's bytes.
        where: named in the error.

    Raises:
        BadInputError: not JSON, or not this format.
    """
    try:
        document = edge.parse_json(data)
        document.pop("triton_version", None)
        if len(document) > MOST_ROWS:
            raise ValueError(f"{len(document)} rows, where {MOST_ROWS} are many")
        return {_tokens(key): Candidate.of(_row(row)) for key, row in document.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise BadInputError(f"{where}: not a fused-MoE configuration file: {error}") from None


def read(path: Path) -> dict[int, Candidate]:
    """As :func:`parse`, of a file.

    Raises:
        BadInputError: it cannot be read, or is not of this format.
    """
    try:
        return parse(edge.read_bytes(path, LIMIT), str(path))
    except (OSError, edge.EdgeError) as error:
        raise edge.bad_input(path, error) from None


def _tokens(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= _DIGITS):
        raise ValueError(f"key {edge.shown(key)} is no number of tokens")
    return int(key)


def _row(row: Mapping[str, Any]) -> dict[str, Scalar]:
    """A row checked; files for other vendors' GPUs have fields of their own, even texts."""
    for name, value in row.items():
        allowed = int if name in FIELDS else int | str
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise TypeError(f"{edge.shown(name)}: {edge.shown(value)}")
    return dict(row)


def look_up(rows: Mapping[int, T], m: int) -> T:
    """What vLLM uses at ``m`` tokens: the nearest key, ties to the one that comes first."""
    return rows[min(rows, key=lambda key: abs(key - m))]


def shipped(configs: Path, shape: MoeShape) -> Iterator[tuple[str, dict[int, Candidate]]]:
    """Files with rows that the installed vLLM has for this shape, on whatever device, by name.

    Args:
        configs: vLLM's ``model_executor/layers/fused_moe/configs`` folder.
        shape: the problem; E, N, dtype and block shape must be equal.
    """
    prefix, _, suffix = shape.config_file_name("@").partition("@")
    for path in sorted(configs.glob("*.json")):
        device = path.name.removeprefix(prefix).removesuffix(suffix)
        if path.name != f"{prefix}{device}{suffix}" or "," in device:
            continue
        if rows := read(path):
            yield path.name, rows
