"""A look at every node before the first boot: each thing that is missing there is one line."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune import __version__
from autotune.core import AutotuneError, MissingEnvironmentError, digest
from autotune.machine.environment import environment
from autotune.machine.memory import MemoryKind, MemoryReading, read_memory
from autotune.serving.server.launchers import LocalLauncher
from autotune.util import edge

_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself.

    Attributes:
        host: the name of the machine.
        node: Ray's id of the node.
        autotune: our version there.
        vllm: the version of what would be served; None where it is not there.
        missing: why it cannot be served; None where it can.
        gpus: names of its GPUs.
        free: how many of them Ray has not given to anybody.
        memory: of the GPU with the least free, or of the host.
        models: digests of the configurations of the models that are folders; None where there is
            no such folder.
        cpus: that a process there may use.
        lent: CPUs that Ray may give out there.
    """

    host: str
    node: str
    autotune: str
    vllm: str | None
    missing: str | None
    gpus: tuple[str, ...]
    free: int
    memory: MemoryReading
    models: tuple[tuple[str, str | None], ...]
    cpus: int = 1
    lent: float = 1.0


def look_here(
    node: str, free: int, lent: float, models: Sequence[str], program: tuple[str, ...]
) -> NodeFacts:
    """Tell what this node has.

    Args:
        node: Ray's id of it.
        free: GPUs that Ray has not given to anybody.
        lent: CPUs that Ray may give out.
        models: folders that are to be served; what is no path is a hub id and passed over.
        program: what stands for vLLM; empty is this Python's.
    """
    launcher, missing = LocalLauncher(program), None
    try:
        launcher.require()
    except AutotuneError as error:
        missing = str(error)
    names = tuple(gpu["name"] for gpu in environment()["gpus"])
    readings = [read_memory(index) for index in range(len(names))] or [read_memory(None)]
    return NodeFacts(
        platform.node(),
        node,
        __version__,
        None if missing else launcher.version(),
        missing,
        names,
        free,
        min(readings, key=lambda reading: reading.free),
        tuple((model, _config(model)) for model in models),
        environment()["cpus"],
        lent,
    )


def _config(model: str) -> str | None:
    """What tells one copy of a model from another, as far as a look can."""
    file = Path(model, "config.json")
    return digest(edge.read_text(file, _CONFIG_BYTES)) if file.is_file() else None


def folders(models: Iterable[str | None]) -> list[str]:
    """Those of the models that are folders here, where the command runs."""
    return [str(Path(m).absolute()) for m in models if m is not None and Path(m).is_dir()]


@dataclass(frozen=True)
class Looked:
    """What the nodes that may serve have in common.

    Attributes:
        nodes: them.
        left_out: in words, nodes with other GPUs, or without where others have some.
    """

    nodes: tuple[NodeFacts, ...]
    left_out: tuple[str, ...] = ()

    @property
    def gpus(self) -> tuple[str, ...]:
        """Names of the GPUs of one node, as ``nvidia-smi`` has them."""
        return self.nodes[0].gpus

    @property
    def memory(self) -> MemoryReading:
        """The reading with the least free memory."""
        return min((node.memory for node in self.nodes), key=lambda reading: reading.free)

    @property
    def per_node(self) -> int:
        """The most GPUs that a node has."""
        return max(len(node.gpus) for node in self.nodes)

    def places(self, gpus: int) -> int:
        """How many servers of so many GPUs run at once.

        Raises:
            MissingEnvironmentError: not one.
        """
        if not self.gpus:
            return len(self.nodes)
        free = [node.free for node in self.nodes]
        packed = sum(count // gpus for count in free)
        found = packed if gpus <= self.per_node else sum(free) // gpus
        if not found:
            each = ", ".join(f"{n.host} {n.free} of {len(n.gpus)}" for n in self.nodes)
            raise MissingEnvironmentError(
                f"--ray: a server needs {gpus} free GPUs, and these are free: {each}; wait for "
                "who holds them (`ray status`)"
            )
        return found


def judged(found: Sequence[NodeFacts]) -> Looked:
    """Choose the nodes that may serve, and see that they can.

    Raises:
        MissingEnvironmentError: they cannot; one line for each thing that a node lacks.
    """
    kinds = Counter(node.gpus[:1] for node in found if node.gpus)
    kind = max(kinds, key=lambda one: kinds[one], default=())
    able = (node for node in found if node.gpus[:1] == kind)
    # In an order that Ray does not have: what the first one has is part of the study's set-up.
    nodes = tuple(sorted(able, key=lambda node: (node.host, node.node)))
    said = [f"{n.host} ({n.gpus[0] if n.gpus else 'no GPU'})" for n in found if n not in nodes]
    lines = [line for node in nodes for line in _lacks(node, nodes)]
    if lines:
        raise MissingEnvironmentError("\n".join(lines))
    if not nodes:
        raise MissingEnvironmentError("--ray: the cluster has no node")
    return Looked(nodes, tuple(said))


def _lacks(node: NodeFacts, nodes: Sequence[NodeFacts]) -> list[str]:
    """What a node lacks, against the majority of them."""
    said = []
    where = f"--ray: node {node.host} ({node.node[:8]})"
    if node.autotune != __version__:
        said.append(f"{where} has autotune {node.autotune}, and this is {__version__}")
    if node.missing is not None:
        said.append(f"{where}: {node.missing}")
    versions = Counter(one.vllm for one in nodes if one.missing is None)
    usual = max(versions, key=lambda one: versions[one], default=None)
    if node.missing is None and node.vllm != usual:
        said.append(f"{where} has vLLM {node.vllm}, and others {usual}; make them the same")
    if node.gpus and not node.free:
        said.append(f"{where}: none of its {len(node.gpus)} GPUs is free; see `ray status`")
    for index, (model, config) in enumerate(node.models):
        copies = Counter(one.models[index][1] for one in nodes if one.models[index][1])
        usual_copy = max(copies, key=lambda one: copies[one], default=None)
        if config is None:
            said.append(f"{where}: has no {model}/config.json; copy the model there")
        elif config != usual_copy:
            said.append(f"{where}: {model} is another model there; its config.json differs")
    if node.memory.kind is not MemoryKind.CPU and node.memory.free <= 0:
        said.append(f"{where}: no memory is free on {node.memory.where}")
    return said
