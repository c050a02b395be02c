"""One server for every gamma: what it is started with, and the byte that turns it.

The scheduler's plugin is in ``plugin.py``. vLLM captures full CUDA graphs for the numbers of
drafted tokens that its schedule by batch size names (V2 model runner,
``vllm/v1/worker/gpu/cudagraph_utils.py``): so the schedule names each, at batch sizes above those
of the load, which never occur.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from autotune.engine.arguments import whole_value
from autotune.serving.dial.plugin import PATH
from autotune.serving.server.plugins import with_plugin, write_plugin
from autotune.serving.server.server import ServeSettings

NAME = "autotune_gamma_dial"
"""Of the entry point, the module and the distribution that vLLM sees."""
SEQUENCES = "--max-num-seqs"


class Dial:
    """The dial holds the byte and the folder that brings the plugin into a server.

    Leaving the ``with`` block removes both; a server that still runs keeps the last value.
    """

    def __init__(self, folder: Path) -> None:
        """Write the plugin, its entry point and the byte.

        Args:
            folder: empty, and readable by the server; nobody else may write in it.
        """
        self.folder = folder
        write_plugin(folder, NAME, "autotune.serving.dial")
        path = folder / "gamma"
        path.write_bytes(b"\0")
        with path.open("r+b") as file:
            self._byte = mmap.mmap(file.fileno(), 1)
        self._path = path

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator[Self]:
        """Make a dial in a folder of its own, which is removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="autotune-dial-") as folder:
            dial = cls(Path(folder))
            try:
                yield dial
            finally:
                dial._byte.close()

    @property
    def gamma(self) -> int:
        """Return what the next step drafts."""
        return self._byte[0]

    def turn(self, gamma: int) -> None:
        """Draft ``gamma`` tokens from the next step on."""
        self._byte[0] = gamma

    def variables(
        self, given: Mapping[str, str], inherited: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Return ``given``, the server's variables, with those that bring the plugin in.

        Args:
            given: for this server.
            inherited: what it has besides; None for this process's variables.
        """
        return with_plugin({**given, PATH: str(self._path)}, self.folder, NAME, inherited)

    def settings(
        self,
        static: ServeSettings,
        gammas: Sequence[int],
        concurrency: int,
        inherited: Mapping[str, str] | None = None,
    ) -> ServeSettings:
        """Return the settings of the one server that can draft each of ``gammas``.

        Args:
            static: of the server that drafts the largest of them.
            gammas: at least two, one above 0.
            concurrency: the most requests in flight.
            inherited: variables that the server has besides; None for this process's.
        """
        given = whole_value(static.extra_args, SEQUENCES) or 0
        sequences = max(given, concurrency + len(gammas) - 1)
        speculative: dict[str, Any] = dict(static.speculative or {})
        speculative["num_speculative_tokens_per_batch_size"] = schedule(gammas, sequences)
        return replace(
            static,
            speculative=speculative,
            extra_args=(*static.extra_args, SEQUENCES, str(sequences)),
            env=self.variables(static.env, inherited),
        )


def schedule(gammas: Sequence[int], sequences: int) -> list[list[int]]:
    """Name each gamma once: the largest from batch size 1 on, the others at the largest sizes.

    Args:
        gammas: at least two, all different.
        sequences: most requests that the server takes; at least as many as gammas.

    Returns:
        ``[first, last, gamma]`` rows, as vLLM's ``num_speculative_tokens_per_batch_size`` wants.
    """
    *others, most = sorted(gammas)
    home = sequences - len(others)
    return [[1, home, most], *([home + i, home + i, g] for i, g in enumerate(others, 1))]
