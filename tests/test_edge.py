"""Files and JSON of others at the edge: one line, in time, whatever they are."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.serving.measure.metrics import Peak, parse_metrics
from autotune.store.store import Store
from autotune.util import edge
from autotune.util.yamlfile import load_yaml


class Anything(BaseModel):
    """A model that takes any mapping."""


BOMB = "a0: &a0 {k0: 1, k1: 1, k2: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}], x{i}: 1}}\n"
    for i in range(1, 40)
)
LAUGHS = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [BOMB, LAUGHS, "a: " + "9" * 5000, "a: &x [*x]", "a: " + "[" * 5000, "a: \ud800"[:3] + "\0"],
    ids=["merge keys", "aliases", "5,000 digits", "itself", "deep", "NUL"],
)
def test_yaml_has_a_budget(text: str, tmp_path: Path) -> None:
    """YAML: merge-key bomb, integers of 5,000 digits."""
    path = tmp_path / "a.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(BadInputError) as caught:
        load_yaml(path, Anything)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large", "absent"])
def test_only_regular_files_of_a_size_are_read(kind: str, tmp_path: Path) -> None:
    """FIFO, device and /dev/zero given as a file."""
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(1 << 34)
    with pytest.raises(BadInputError) as caught:
        load_yaml(path, Anything)
    assert str(path) in str(caught.value)
    with pytest.raises((edge.EdgeError, OSError)):
        edge.read_json(path)


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "1e999",
        "9" * 5000,
        "[" * 100_000,
        "[" * 100 + "]" * 100,
        '"\\ud800"',
        '{"\\udfff": 1}',
        "",
        "{",
        "\x00",
    ],
)
def test_json_leaves_plain_values_or_one_line(text: str) -> None:
    with pytest.raises(edge.EdgeError) as caught:
        edge.parse_json(text)
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**30), 10**30)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_that_is_fine_is_left_as_it_is(value: Any) -> None:
    assert edge.parse_json(json.dumps(value)) == value


@given(st.text(alphabet='[]{},:"\\ud8001eE+-.NaInfity \n', max_size=60))
def test_json_of_any_kind_ends_in_a_value_or_one_line(text: str) -> None:
    try:
        value = edge.parse_json(text)
    except edge.EdgeError:
        return
    json.dumps(value, allow_nan=False).encode()


@pytest.mark.parametrize("value", ["+Inf", "NaN", "-1", "1e300", "x", "-Inf"])
def test_a_gauge_that_is_no_number_is_not_counted(value: str) -> None:
    """+Inf in ``metrics.Peak.add``; gauge of Infinity."""
    peak = Peak()
    line = f'vllm:num_requests_waiting{{engine="0"}} {value}\n'
    peak.add(line + f'vllm:kv_cache_usage_perc{{engine="0"}} {value}\n')
    assert (peak.kv_cache_usage, peak.waiting, peak.readings) == (None, None, 1)
    with pytest.raises(ValueError, match=r".+"):
        parse_metrics(line)
    assert math.isfinite(peak.readings)


def test_a_label_of_two_megabytes_takes_no_time() -> None:
    """Quadratic parsers."""
    began = time.monotonic()
    with pytest.raises(ValueError, match="too long"):
        parse_metrics('vllm:cache_config_info{a="' + "\\\\" * (1 << 20) + '"} 1.0\n')
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_database_that_goes_away_is_noticed(how: str, tmp_path: Path) -> None:
    """Database deleted under a running command."""
    path = tmp_path / "a.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.study("s", "moe", {})
        path.unlink()
        if how == "replaced":
            path.write_bytes(b"")
        with pytest.raises(MissingEnvironmentError, match="was deleted or replaced"):
            store.study("t", "moe", {})
