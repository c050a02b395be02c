"""README.md and docs/: links resolve, commands parse, generated blocks agree with their files."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import typer
from cogapp import Cog

from autotune.cli import app
from autotune.core import Outcome

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
COGGED = [page for page in PAGES if "[[[cog" in page.read_text()]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The text without blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_of_the_project_that_are_named_exist(page: Path) -> None:
    top = r"(?:autotune|tests|benchmarks|search_spaces|docs|alembic)"
    for path in re.findall(rf"`({top}/[\w./-]+\.(?:py|ya?ml|md|json))`", page.read_text()):
        assert (ROOT / path).exists(), path


def commands(page: Path) -> Iterator[list[str]]:
    """Every `autotune …` line of the blocks of code of a page, as words."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    for line in text.splitlines():
        if not line.startswith(("    ", "autotune ")):
            continue
        found = re.match(r"\s+(?:\w+=\S+ )?autotune ([a-z].*)", line) or re.match(
            r"autotune ([a-z].*)", line
        )
        if found:
            yield shlex.split(
                re.split(r"\s(?:2>&1|>|#)\s?", found[1])[0].replace(" [--compile]", "")
            )


def parsed(words: list[str]) -> None:
    """Parse one command line as the program does, without running it."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    command = getattr(group, "commands", {})[words[0]]
    command.make_context(words[0], words[1:])


SHOWN = [(page, words) for page in PAGES for words in commands(page)]


def test_commands_are_found() -> None:
    assert len(SHOWN) > 30
    assert {words[0] for _, words in SHOWN} >= {"moe", "spec", "export", "verify", "compare"}


@pytest.mark.parametrize(
    ("page", "words"), SHOWN, ids=[f"{named(page)}:{' '.join(words)[:60]}" for page, words in SHOWN]
)
def test_a_command_that_is_shown_can_be_given(page: Path, words: list[str]) -> None:
    parsed(words)


def test_a_flag_that_does_not_exist_is_found_out() -> None:
    with pytest.raises(Exception, match="no-such-flag"):
        parsed(["moe", "--device", "gb10", "--no-such-flag"])


def test_there_are_generated_blocks() -> None:
    assert {named(page) for page in COGGED} >= {"README.md", "docs/lab/h200.md", "docs/lab/h100.md"}


@pytest.mark.parametrize("page", COGGED, ids=named)
def test_generated_blocks_are_what_the_result_files_say(page: Path) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = Cog().main(["cog", "-P", "--check", "-I", str(ROOT), str(page)])
    assert status == 0, f"python -m cogapp -r -P -I . {named(page)}: {said.getvalue()}"


def test_every_outcome_is_explained() -> None:
    text = (ROOT / "docs" / "reference" / "outcomes.md").read_text()
    assert [one for one in Outcome if one is not Outcome.OK and f"`{one}`" not in text] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_walks_name_what_exists() -> None:
    """A name such as `kernels/job.py:run` in docs/architecture.md is a definition in that file."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    named_there = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", text)
    assert len(named_there) > 40
    for file, name in named_there:
        path = ROOT / file if file.startswith("tests/") else ROOT / "autotune" / file
        assert path.exists(), file
        defined = re.search(rf"^(?:async )?(?:def|class) {name}\b", path.read_text(), re.MULTILINE)
        assert not name or defined, f"{file}:{name}"


def test_the_tests_of_the_cases_exist() -> None:
    named = re.findall(
        r"`(tests/[\w/]+\.py)::(test_\w+)`", (ROOT / "docs/explanation/cases.md").read_text()
    )
    assert len(named) >= 25
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), (file, test)
