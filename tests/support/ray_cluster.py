"""A Ray cluster of several nodes on this machine, each with processes of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil


class Nodes:
    """The nodes of a cluster; the first one is its head and has no room for servers."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address
        self.workers: list[Any] = []

    def add(self, **resources: float) -> None:
        """Start one more node."""
        self.workers.append(self._cluster.add_node(**resources))

    def kill(self, index: int) -> None:
        """End a node as a power cut does: its raylet, and all that runs under it."""
        node = self.workers[index]
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        ended = [*raylet.children(recursive=True), raylet]
        for process in ended:
            process.kill()
        psutil.wait_procs(ended, 10.0)

    def kill_raylet(self, index: int) -> None:
        """Kill a node's raylet alone: its workers see it and end by themselves."""
        psutil.Process(self.workers[index].all_processes["raylet"][0].process.pid).kill()

    def kill_head(self) -> None:
        """End the head and all that runs on it; the other nodes are left without one."""
        psutil.Process(self.workers[0].all_processes["gcs_server"][0].process.pid).kill()
        self.kill(0)

    def id_of(self, index: int) -> str:
        """Ray's id of a node."""
        found: str = self.workers[index].node_id
        return found


@contextmanager
def nodes(*workers: dict[str, float]) -> Iterator[Nodes]:
    """A cluster with nodes of these resources, such as ``{"num_cpus": 1}``."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made = Nodes(cluster)
    made.workers.append(cluster.head_node)
    try:
        for resources in workers:
            made.add(**resources)
        yield made
    finally:
        cluster.shutdown()
