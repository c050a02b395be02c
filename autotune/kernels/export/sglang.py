"""SGLang's form of a tuned file.

Source: SGLang's ``fused_moe_triton_config.py`` (``get_config_file_name``, ``get_moe_configs``), as
of 0.5; not run here. It looks in ``$SGLANG_MOE_CONFIG_DIR/configs/triton_X_Y_Z`` and turns every
key into a number, so that the file must not name its Triton version as vLLM's does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from autotune.core import Candidate
from autotune.kernels.config_file import FIELDS
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme

FOLDER_IN_REPO = "python/sglang/srt/layers/moe/moe_runner/triton_utils/configs"


def file_name(shape: MoeShape, device_name: str) -> str:
    """The name that SGLang looks for.

    Args:
        shape: the layer on this rank.
        device_name: of the GPU as torch gives it; blanks become ``_``.
    """
    dtype = f",dtype={shape.dtype}" if shape.dtype else ""
    block = f",block_shape={list(shape.block_shape)}" if shape.block_shape else ""
    channel = ",per_channel_quant=True" if shape.scheme is Scheme.CHANNEL else ""
    device = device_name.replace(" ", "_")
    return (
        f"E={shape.experts},N={shape.intermediate},device_name={device}{dtype}{block}{channel}.json"
    )


def render(rows: Mapping[int, Candidate]) -> bytes:
    """The file's bytes: M ascending, indent 4, newline at the end."""
    document = {str(m): {name: rows[m].int(name) for name in FIELDS} for m in sorted(rows)}
    return (json.dumps(document, indent=4) + "\n").encode()
