"""Failures of a YAML file are one line that names file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from autotune.core import BadInputError
from autotune.util.yamlfile import load_yaml


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    size: int = Field(gt=0)


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    parts: list[Part] = []
    table: dict[str, int] = {}
    pair: tuple[int, int] = Field(default=(0, 0), strict=False)


def test_reads_what_safe_load_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\ntable:\n  <<: {x: 1, y: 2}\n  y: 3\nparts:\n- size: 0x10\n")
    whole = load_yaml(path, Whole)
    assert whole.model_dump(exclude_unset=True) == yaml.safe_load(path.read_text())
    assert whole.table == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nparts:\n  - size: 1\n  - size: big\n", "4: parts.1.size: "),
        ("name: a\nparts:\n  - size: 1\n  -\n    size: -2\n", "5: parts.1.size: "),
        ("name: a\nparts:\n  - {}\n", "3: parts.0.size: "),
        ("name: a\npair: [1]\n", "2: pair"),
        ("\n\nparts: []\n", "3: name: "),
        ("name: a\nnaem: b\n", "2: naem: "),
        ("name: a\nparts:\n- size: 1\n  colour: 2\n", "4: parts.0.colour: "),
        ("name: a\nname: b\n", "2: name: "),
        ("name: a\ntable:\n  x: 1\n  'x': 2\n", "4: x: "),
        ("name: a\ntable: {x: 1, y: [1]}\n", "2: table.y: "),
        ("name: 12\n", "1: name: "),
        ("- a\n- b\n", "1: "),
        ("", "1: "),
        ("just words", "1: "),
        ("name: a\nparts: [1, 2\n", "3: "),
        ("name: a\n  b: c\n", "2: "),
        ("name: *nowhere\n", "1: "),
        ("name: !!python/object:os.system x\n", "1: "),
        ("name: a\n---\nname: b\n", "2: "),
        ("name: a\nparts: \x00\n", " not YAML"),
        (b"name: a\nparts: \xff\n", " not UTF-8"),
    ],
)
def test_one_line_for_a_failure(tmp_path: Path, text: str | bytes, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInputError) as caught:
        load_yaml(path, Whole)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}:{expected}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"a\.yaml: cannot be read: No such file"):
        load_yaml(tmp_path / "a.yaml", Whole)
    with pytest.raises(BadInputError, match="Is a directory"):
        load_yaml(tmp_path, Whole)
