"""Rows that others published: the file that holds them, and which of them a search tries first."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.core import BadInputError
from autotune.kernels.config_file import look_up
from autotune.kernels.moe.from_model import explicit_shape, load_config, shape_from_config
from autotune.kernels.published import (
    PublishedFiles,
    candidate_of,
    published_for,
    published_rows,
)
from autotune.util.resources import data_root
from autotune.util.yamlfile import load_yaml

GEMMA = shape_from_config(load_config("gemma-4-26b-a4b"))
FILES = published_for("gb10")


def test_every_file_says_where_it_comes_from() -> None:
    assert len(FILES) == 7
    assert all(file.origin.startswith("published: ") for file in FILES)
    assert sum(len(file.rows) for file in FILES) == 88
    assert {file.shape.weight_dtype for file in FILES} == {"fp8", "bf16"}
    assert published_for("h200") == []


def test_rows_of_the_shape_come_first_and_as_vllm_would_look_them_up() -> None:
    found = list(published_rows(FILES, GEMMA, 64).items())
    own = [file for file in FILES if file.shape == GEMMA]
    assert [row for row, _ in found[:2]] == [look_up(file.candidates, 64) for file in own]
    assert [origin for _, origin in found[:2]] == [file.origin for file in own]


def test_the_nearest_shape_with_such_weights_is_looked_up_by_tokens_per_expert() -> None:
    shape = explicit_shape(
        experts=144, intermediate=512, hidden=4096, topk=8, dtype="fp8_w8a8", scheme="block"
    )
    row, origin = next(iter(published_rows(FILES, shape, 8).items()))
    glm = next(file for file in FILES if file.name.startswith("glm"))
    # Half the experts: 8 tokens here are 16 there.
    assert row.params == {**glm.candidates[16].params, "BLOCK_SIZE_K": 128}
    assert origin.endswith("for E=288, N=512")


def test_nothing_is_tried_of_other_weights() -> None:
    shape = explicit_shape(
        experts=8, intermediate=512, hidden=4096, topk=2, dtype="int8_w8a8", scheme="channel"
    )
    assert published_rows(FILES, shape, 8) == {}


def test_a_row_of_five_values_is_refused_with_its_line(tmp_path: Path) -> None:
    text = (data_root() / "search_spaces/published/gb10.yaml").read_text()
    broken = tmp_path / "gb10.yaml"
    broken.write_text(text.replace("[32, 32, 256, 32, 8, 4]", "[32, 32, 256, 32, 8]", 1))
    with pytest.raises(BadInputError, match=r"gb10.yaml:\d+: files\.0\.rows"):
        load_yaml(broken, PublishedFiles)


def test_values_are_in_the_order_of_the_file() -> None:
    row = candidate_of((16, 64, 256, 1, 4, 5))
    assert (row["BLOCK_SIZE_K"], row["num_stages"]) == (256, 5)
