"""Servers of several GPUs: how many a setting takes, and ``vllm serve`` with its Ray executor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.core import BadInputError
from autotune.engine.arguments import argument_value, whole_value
from autotune.serving.cluster.plugin import GROUP
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.plugins import with_plugin, write_plugin
from autotune.serving.server.process import ProcessHandle
from autotune.serving.server.server import ServeSettings

NAME = "autotune_placement_group"
"""Of the entry point, the module and the distribution that vLLM sees."""
BACKEND = "--distributed-executor-backend"
_SIZES = ("--tensor-parallel-size", "--pipeline-parallel-size", "--prefill-context-parallel-size")
_MOST = 1024


def gpus_of(settings: ServeSettings) -> int:
    """How many GPUs a server takes.

    Raises:
        BadInputError: replicas, each of which is a server of its own; or a number beyond belief.
    """
    args = settings.extra_args
    if (whole_value(args, "--data-parallel-size") or 1) > 1:
        raise BadInputError(
            "--data-parallel-size: with --ray each replica is a server of its own; leave it out"
        )
    found = 1
    for size in _SIZES:
        found *= whole_value(args, size) or 1
    if not 1 <= found <= _MOST:
        raise BadInputError(f"{' times '.join(_SIZES)} is {found}; expected 1 to {_MOST}")
    return found


def most_gpus(settings: Iterable[ServeSettings]) -> int:
    """How many GPUs the largest of these servers takes.

    Raises:
        BadInputError: see :func:`gpus_of`; or some would be served by another executor than Ray's.
    """
    listed = list(settings)
    most = max((gpus_of(one) for one in listed), default=1)
    for one in listed if most > 1 else ():
        backend = argument_value(one.extra_args, BACKEND)
        if backend not in {None, "ray"}:
            raise BadInputError(
                f"{BACKEND} {backend}: with --ray a server of {most} GPUs has vLLM's Ray executor; "
                "leave the flag out, or leave --ray out"
            )
    return most


@dataclass(frozen=True)
class GroupLauncher(LocalLauncher):
    """Servers whose workers vLLM's Ray executor starts in a placement group.

    Attributes:
        group: its id, in hex; empty until the node has it.
        address: of the cluster, for the server; empty likewise.
        folder: holds the plugin that brings vLLM into the group; None likewise.
        order: the group's bundles, those of this node first.
    """

    group: str = ""
    address: str = ""
    folder: Path | None = None
    order: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What of it must be the same for two trials to be compared."""
        return {**super().as_json(), "executor": "ray"}

    def shell_line(self, settings: ServeSettings) -> str:
        """What a user types on a node of the cluster to serve the settings."""
        return super().shell_line(_by_ray(settings))

    def command(self, settings: ServeSettings, port: int) -> list[str]:
        """The command that is run."""
        return super().command(_by_ray(settings), port)

    def within(self, group: str, address: str, order: Sequence[int], folder: Path) -> GroupLauncher:
        """Tell it the group on this node; the plugin is written to ``folder``, which is empty."""
        write_plugin(folder, NAME, "autotune.serving.cluster")
        return replace(self, group=group, address=address, folder=folder, order=tuple(order))

    def launch(self, settings: ServeSettings, log: Path) -> ProcessHandle:
        """Start a server on a free port of 127.0.0.1.

        Raises:
            MissingEnvironmentError: the program, or vLLM, is not there.
        """
        if self.folder is None:
            raise ValueError("no placement group yet")
        ours, taken = {GROUP: self.group, "RAY_ADDRESS": self.address}, gpus_of(settings)
        if taken < len(self.order):  # always the same ones, on which all are compared
            ours["VLLM_RAY_BUNDLE_INDICES"] = ",".join(map(str, self.order[:taken]))
        env = with_plugin({**settings.env, **ours}, self.folder, NAME)
        return super().launch(replace(settings, env=env), log)


def _by_ray(settings: ServeSettings) -> ServeSettings:
    if argument_value(settings.extra_args, BACKEND) is not None:
        return settings
    return replace(settings, extra_args=(*settings.extra_args, BACKEND, "ray"))
