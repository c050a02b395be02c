"""`make audit` tells apart: nothing known, an advisory, and nothing looked up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from requirements import audit

NONE = {"dependencies": [{"name": "a", "version": "1", "vulns": []}]}
ONE = {
    "dependencies": [
        {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]},
        {"name": "b", "skip_reason": "not on PyPI"},
    ]
}
SKIPPED = {"dependencies": [{"name": "a", "skip_reason": "not on PyPI"}]}


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (json.dumps(NONE), audit.FINE, "pypi: 1 packages looked up, advisories for 0"),
        (json.dumps(ONE), audit.FOUND, "a 1: PYSEC-1, mended in 2"),
        (json.dumps(SKIPPED), audit.NOT_AUDITED, "NOT AUDITED: no advisory database"),
        ("", audit.NOT_AUDITED, "NOT AUDITED: no advisory database can be reached (pypi: no way"),
        ("[]", audit.NOT_AUDITED, "NOT AUDITED"),
        (None, audit.NOT_AUDITED, "No such file"),
    ],
    ids=["none", "one", "skipped", "unreachable", "another form", "not installed"],
)
def test_what_was_looked_up_is_said(
    said: str | None,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = tmp_path / "pip-audit"
    if said is not None:
        program.write_text(f"#!/bin/sh\necho 'no way' >&2\nprintf '%s' '{said}'\n")
        program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["audit", str(program)])
    assert audit.main() == code
    assert words in capsys.readouterr().out
