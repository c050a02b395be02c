"""Published figures: read with their space, set beside candidates, named as what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.core import BadInputError, Scalar
from autotune.space.published import cell
from autotune.space.space import load_space

HEAD = """\
name: s
title: t
source: u
parameters:
  gamma: {values: [0, 2], why: w}
  mode: {values: [fast, slow], why: w}
published:
  hardware: one X
  source: somebody
"""


def test_the_seed_recipe_carries_what_was_published() -> None:
    published = load_space("gemma-4-26b-a4b-gb10", "spec").published
    assert published is not None
    assert "GB10" in published.hardware
    assert published.as_json()["basis"] == "published, not ours"
    params: dict[str, Scalar] = {
        "gamma": 4,
        "kv_cache_dtype": "fp8",
        "gpu_memory_utilization": "0.85",
    }
    assert cell(published.of(params)) == "108.8 at 1, 348.3 at 4, 674.3 at 8"
    assert cell(published.of({**params, "gamma": 3})) == "–"
    assert cell(published.of({**params, "kv_cache_dtype": "auto"})) == "–"
    (best,) = [f for f in published.of(params) if f.concurrency == 1]
    assert published.times_baseline(best) == pytest.approx(2.66, abs=0.005)
    ratios = [published.times_baseline(f) for f in published.figures if f.target]
    assert ratios == pytest.approx([1.0, 0.615, 1.0, 2.543], abs=0.001)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ("[]", "figures"),
        ("[{setting: {gama: 2}, concurrency: 1, tok_s: 1.0}]", "'gama', which is no parameter"),
        ("[{setting: {gamma: 2}, concurrency: 0, tok_s: 1.0}]", "concurrency"),
        ("[{setting: {gamma: 2}, concurrency: 1, tok_s: -1.0}]", "tok_s"),
        ("[{setting: {gamma: 2}, concurrency: 1, tok_s: fast}]", "tok_s"),
        ("[{setting: {gamma: 2}, concurrency: 1, tok_s: 1.0, measured: true}]", "measured"),
    ],
)
def test_figures_that_cannot_be_are_one_line(figures: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"{HEAD}  figures: {figures}\n")
    with pytest.raises(BadInputError, match=words) as caught:
        load_space(str(path), "spec")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
