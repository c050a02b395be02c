"""The keys of ``--speculative-config``, read off the vLLM that is installed without importing it.

Source: class ``SpeculativeConfig`` in ``vllm/config/speculative.py``.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from autotune.util import edge


@functools.cache
def speculative_keys() -> frozenset[str] | None:
    """Return the keys; None where no vLLM is installed here, or its source has another form."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    try:
        source = edge.read_text(Path(spec.origin).parent / "config" / "speculative.py")
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return None
    fields = {
        node.target.id
        for one in tree.body
        if isinstance(one, ast.ClassDef) and one.name == "SpeculativeConfig"
        for node in one.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return frozenset(name for name in fields if not name.startswith("_")) or None
