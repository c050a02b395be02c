"""Brings a plugin of ours into a server: vLLM loads it by an entry point in each of its processes.

The folder holds the plugin's module and a distribution that names it (``vllm/plugins/__init__.py``,
group ``vllm.general_plugins``); no other server sees it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

PLUGINS = "VLLM_PLUGINS"
"""vLLM's list of the plugins that it may load; all where it is not set."""


def write_plugin(folder: Path, name: str, package: str) -> None:
    """Write the module ``plugin`` of a package of ours, and its entry point.

    Args:
        folder: readable by the server; nobody else may write in it.
        name: of the entry point, the module and the distribution that vLLM sees.
        package: such as ``autotune.serving.dial``.
    """
    source = resources.files(package).joinpath("plugin.py").read_bytes()
    (folder / f"{name}.py").write_bytes(source)
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{name} = {name}:register\n")


def with_plugin(
    given: Mapping[str, str],
    folder: Path,
    name: str,
    inherited: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return ``given``, a server's variables, with those that bring the plugin in.

    Args:
        given: for this server.
        folder: with the plugin.
        name: of it.
        inherited: what the server has besides: this process's variables if None, or those that an
            image sets.
    """
    inherited = os.environ if inherited is None else inherited
    known = given.get("PYTHONPATH", inherited.get("PYTHONPATH", ""))
    found = {**given, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), known]))}
    allowed = given.get(PLUGINS, inherited.get(PLUGINS))
    if allowed is not None:
        found[PLUGINS] = ",".join(filter(None, [*allowed.split(","), name]))
    return found
