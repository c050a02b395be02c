"""Notes that stand beside the numbers of every job, so that nobody takes them for more."""

from __future__ import annotations

from autotune.core import Basis

SPARSE = 12
"""Fewer keys than this leave wide gaps; a sparse file once cost 2.35 % (a vLLM pull request)."""

NOTE = (
    "MEASURED on the GPU named below: the whole fused_experts call in CUDA graphs, finalists and "
    "vLLM's default side by side in a fresh process with fresh routings, outputs checked against "
    "float32."
)
PREDICTED_NOTE = (
    "PREDICTED, not measured: the real kernel was compiled for the device, its time was computed "
    "by a cost model (docs/explanation/cost-model.md). Measure before you rely on it, and do not "
    "send it upstream."
)
FP16_WARNING = (
    "fp8 operands end up in fp16 tensor-core instructions (HMMA) with Triton {triton}: half the "
    "rate. On sm_121 Triton 3.6.0 to 3.7.1 does so everywhere and 3.8.0 uses QMMA; on sm_90 and "
    "sm_100 tiles below 64 rows and columns do. Tune with the Triton that will serve: a tuned file "
    "is for one Triton generation."
)


def note(basis: Basis) -> str:
    """Say what the numbers are."""
    return NOTE if basis is Basis.MEASURED else PREDICTED_NOTE


def few_keys(number: int) -> str | None:
    """Warn of a file with gaps; None where there are enough keys."""
    if number >= SPARSE:
        return None
    return (
        f"few keys in the file ({number}): vLLM uses the nearest one at every batch size and never "
        "falls back to its defaults"
    )
