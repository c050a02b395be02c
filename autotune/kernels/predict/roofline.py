"""What a call must at least compute and move, against what the GPU can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.predict.work import least_work
from autotune.machine.devices import Device


@dataclass(frozen=True)
class Ceilings:
    """What a GPU can: ``gbs`` in GB/s (1e9), ``tflops`` in TFLOP/s, and where they come from."""

    gbs: float
    tflops: float
    source: str

    @classmethod
    def measured(cls, facts: Mapping[str, Any], shape: MoeShape) -> Ceilings:
        """As the measuring process read them; 8-bit products count twice the bf16 rate."""
        twice = 2 if shape.variant.element == 1 else 1
        return cls(
            facts["copy_gbs"],
            facts["bf16_tflops"] * twice,
            f"measured on {facts['gpu']}: a copy, and a bf16 product"
            + (" (8-bit: twice that)" if twice == 2 else ""),
        )

    @classmethod
    def published(cls, device: Device, shape: MoeShape) -> Ceilings:
        """By the device's file, not measured by this study."""
        rates = device.tensor_flops_per_sm_per_clock
        own = [rate for name, rate in rates.items() if name.endswith(shape.weight_dtype)]
        rate = max(own, default=max(rates.values()))
        return cls(
            device.memory_bandwidth_gbs,
            rate * device.sm_count * device.boost_clock_mhz / 1e6,
            f"not measured by this study, but from search_spaces/devices/{device.name}.yaml: "
            f"{device.sources['memory_bandwidth_gbs']}; "
            f"{device.sources['tensor_flops_per_sm_per_clock']}",
        )


@dataclass(frozen=True)
class Share:
    """A call of so many µs against the ceilings; shares are 0 to 1.

    ``intensity`` in FLOP per byte and ``tflops`` count the least work that the call could do.
    """

    bandwidth: float
    tensor: float
    intensity: float
    tflops: float
    floor_us: float


def share(shape: MoeShape, m: int, us: float, ceilings: Ceilings, routing: Routing) -> Share:
    """How near a call at ``m`` tokens, routed so, comes to what the GPU can."""
    work = least_work(MoeWorkload(shape, m), routing)
    moving, computing = work.bytes / ceilings.gbs / 1e3, work.flops / ceilings.tflops / 1e6
    return Share(
        bandwidth=moving / us,
        tensor=computing / us,
        intensity=work.flops / work.bytes,
        tflops=work.flops / us / 1e6,
        floor_us=max(moving, computing),
    )
