"""A variant of the fused-MoE kernel is one row of a table: a new one needs no second place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import autotune
from autotune.core import BadInputError, Candidate
from autotune.kernels.memory import weight_bytes
from autotune.kernels.moe.backend import _RULES
from autotune.kernels.moe.constraints import CONSTRAINTS
from autotune.kernels.moe.file_name import parse_name
from autotune.kernels.moe.from_model import explicit_shape
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.moe.variants import VARIANTS, Scheme
from autotune.kernels.predict.cost_model import predict
from autotune.kernels.predict.measurer import estimated_resources, tile_of
from autotune.machine.devices import get_device

GB10 = get_device("gb10")
ROW = Candidate.of(
    {
        "BLOCK_SIZE_M": 16,
        "BLOCK_SIZE_N": 64,
        "BLOCK_SIZE_K": 128,
        "GROUP_SIZE_M": 1,
        "num_warps": 4,
        "num_stages": 3,
    }
)


def _shape(dtype: str, scheme: str | None = None) -> MoeShape:
    return explicit_shape(
        experts=64, intermediate=512, hidden=1024, topk=4, dtype=dtype, scheme=scheme
    )


def test_a_new_row_is_known_from_the_flag_to_the_prediction_and_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up = replace(VARIANTS["fp8_w8a8"], name="fp9_w9a9", weights="fp9", selector="fp9_w9a9")
    monkeypatch.setitem(VARIANTS, "fp9_w9a9", replace(made_up, element=4, least_k=256))
    shape = _shape("fp9_w9a9")
    assert MoeShape.from_json(shape.as_json()) == shape
    assert shape.config_file_name("X") == "E=64,N=512,device_name=X,dtype=fp9_w9a9.json"
    assert weight_bytes(shape) == 4 * weight_bytes(_shape("fp8_w8a8"))
    refused = {name: check(ROW.ints, shape, GB10) for name, check in CONSTRAINTS.items()}
    assert refused.pop("block_k_deep_enough") == "BLOCK_SIZE_K=128 is below 256"
    assert not any(refused.values())
    wide, narrow = (
        predict(
            MoeWorkload(shape, 1),
            tile_of(ROW, shape),
            (estimated_resources(ROW, shape, GB10),) * 2,
            GB10,
        ).us
        for shape in (shape, _shape("fp8_w8a8"))
    )
    assert wide > 2 * narrow  # the memory limits it, and every value has four bytes
    with pytest.raises(BadInputError, match=r"--dtype fp1: not one of .*, fp9_w9a9$"):
        _shape("fp1")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_is_whole(name: str) -> None:
    variant = VARIANTS[name]
    assert variant.name == name
    assert name in _RULES  # what vLLM runs it with
    assert variant.quantised == (variant.quant_config is not None) == (variant.unit is not None)
    for scheme in Scheme:
        if scheme in variant.schemes:
            assert _shape(name, scheme.value).variant is variant
        else:
            with pytest.raises(BadInputError, match=f"--scheme {scheme.value} does not go with"):
                _shape(name, scheme.value)
    named = parse_name(_shape(name).config_file_name("NVIDIA_GB10"))
    assert named is not None
    read = named.shape(1024, 4)
    assert read is not None
    assert read.dtype == variant.selector  # int8_w8a8 and bf16 have the same name in vLLM


def test_no_two_rows_are_one_in_a_database() -> None:
    assert len({variant.weights for variant in VARIANTS.values()}) == len(VARIANTS)
    with pytest.raises(BadInputError, match="weights of type 'fp1': not one of fp8, int8, bf16"):
        replace(_shape("bf16"), weight_dtype="fp1")


def test_nobody_else_decides_by_the_name_of_a_type() -> None:
    deciding = re.compile(r"weight_dtype\s*(==|!=|in\b)|\[\s*\w*\.?shape\.weight_dtype\s*\]")
    folder = Path(autotune.__file__).parent
    found = [str(path) for path in folder.rglob("*.py") if deciding.search(path.read_text())]
    assert not found
