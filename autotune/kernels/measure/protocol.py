"""What the kernel job asks of a measurer, wherever that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autotune.core import Cache, Candidate, Measurer, SideBySide
from autotune.kernels.moe.shape import MoeWorkload


class KernelMeasurer(Measurer, Protocol):
    """A measurer of one kernel and shape, which knows vLLM's own choice as well."""

    def use(self, cache: Cache) -> None:
        """Take a cache of compile results; once it is entered, and only where the cache is."""

    def defaults(self, batch_sizes: Sequence[int]) -> dict[int, Candidate]:
        """Return what vLLM would run at each M without a file, where this measurer measures.

        Raises:
            MissingEnvironmentError: vLLM cannot be asked there.
        """


class KernelTimer(KernelMeasurer, SideBySide, Protocol):
    """A measurer that runs the kernels, rather than predicting their times."""

    @property
    def spent(self) -> Mapping[str, float]:
        """Where the time went, in seconds, how often workers were replaced, and memory in MiB."""

    def facts(self) -> dict[str, Any]:
        """Return versions, GPU, measured ceilings, and whether fp8 is multiplied as fp16.

        Raises:
            MissingEnvironmentError: nothing can be measured here.
        """

    def spare(self, m: int) -> None:
        """Measure nothing of ``m`` tokens or more: it ran the host short of memory."""

    def prepare_comparisons(self) -> None:
        """Start what :meth:`compare` needs in the background, if that takes long."""

    def places(self, default: Candidate, workload: MoeWorkload) -> dict[str, float]:
        """Return how fast ``default`` is on each GPU, over the slowest; empty with one."""
