"""Bad input to export, verify and compare: one clear line, the right exit code, nothing left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from autotune.kernels.export.upstream import CONFIGS
from autotune.store.store import Store
from tests.kernels.kept_study import (
    FILE,
    KEPT,
    NAME,
    PERSON,
    SMALL,
    STUDY,
    checkout,
    database,
    git,
    predicted,
)
from tests.support.commands import BAD, MISSING, check

Run = Callable[..., tuple[int, str, str]]
F = ["export", STUDY, "--to", "folder", "--db", "sqlite:///{t}/kept.db"]
V = ["export", STUDY, "--to", "vllm", "--db", "sqlite:///{t}/kept.db", "--signoff", PERSON]
R = [*V, "--repo", "{t}/vllm"]
S = ["export", STUDY, "--to", "sglang", "--db", "sqlite:///{t}/kept.db"]
C = ["compare", "{t}/a.json", "{t}/b.json"]
ROW = '{"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, '
ROW += '"num_warps": 4, "num_stages": 4}'
GOOD = f'{{"1": {ROW}}}'


@dataclass(frozen=True)
class Case:
    """A command, what it says, and files that lie in the checkout ``vllm`` and beside it."""

    id: str
    args: list[str]
    code: int
    words: tuple[str, ...]
    committed: Mapping[str, str | bytes] | None = None
    files: Mapping[str, str | bytes] | None = None


def repo(**files: str | bytes) -> Mapping[str, str | bytes]:
    return {**SMALL, **files}


TWO: dict[str, str | bytes] = {"a.json": GOOD, "b.json": GOOD}
CASES = [
    Case("export: no target", ["export", STUDY], BAD, ("--to",)),
    Case("export: unknown target", ["export", STUDY, "--to", "ollama"], BAD, ("--to ollama",)),
    Case("export: no study", [*F[:1], "x" + STUDY, *F[2:]], BAD, ("no study", STUDY)),
    Case("export: no database", [*F, "--db", "sqlite:///{t}/no.db"], BAD, ("no such database",)),
    Case("export: gain", [*F, "--min-gain", "two"], BAD, ("--min-gain two",)),
    Case("export: repo for a folder", [*F, "--repo", "x"], BAD, ("--repo: only for --to vllm",)),
    Case("export: branch for sglang", [*S, "--branch", "x"], BAD, ("--branch: only",)),
    Case("export: dest is a file", [*F, "--dest", "{t}/f"], BAD, ("{t}/f",), files={"f": ""}),
    Case("export: dest in /proc", [*S, "--dest", "/proc/x"], BAD, ("/proc/x",)),
    Case("export: device", [*F, "--device", "gb10"], BAD, ("--device gb10", "for h200")),
    Case("vllm: no repo", V, BAD, ("--repo CHECKOUT",)),
    Case("vllm: no folder", R, BAD, ("--repo {t}/vllm: no such folder",)),
    Case("vllm: no checkout", R, BAD, ("not a git checkout",), files={"vllm/x": ""}),
    Case("vllm: not its top", [*R[:-1], "{t}/vllm/vllm"], BAD, ("not its top",), SMALL),
    Case("vllm: another project", R, BAD, (CONFIGS, "is it vLLM's?"), {"README": "x"}),
    Case("vllm: no such base", [*R, "--base", "v9"], BAD, ("has no commit 'v9'",), SMALL),
    Case("vllm: base is a flag", [*R, "--base=--all"], BAD, ("has no commit '--all'",), SMALL),
    Case("vllm: branch exists", [*R, "--branch", "main"], BAD, ("has a branch main",), SMALL),
    Case("vllm: branch no name", [*R, "--branch", "a..b"], BAD, ("'a..b'", "git allows"), SMALL),
    Case("vllm: branch a flag", [*R, "--branch=-D"], BAD, ("'-D'", "git allows"), SMALL),
    Case(
        "vllm: sign-off", [*R, "--signoff", "Ann"], BAD, ("--signoff 'Ann'", "<ann@x.org>"), SMALL
    ),
    Case("vllm: sign-off lines", [*R, "--signoff", "A\nB <a@b>"], BAD, ("--signoff",), SMALL),
    Case("vllm: model name", [*R, "--model-name", " "], BAD, ("--model-name ' '",), SMALL),
    Case(
        "vllm: Triton by torch",
        R,
        BAD,
        ("wants Triton 3.7.1", "torch 2.13.0", "3.6.0, which is older"),
        repo(**{"requirements/cuda.txt": "torch==2.13.0\n"}),
    ),
    Case(
        "vllm: Triton pinned",
        R,
        BAD,
        ("wants Triton 3.10.0 (requirements/test/cuda.txt)",),
        repo(**{"requirements/test/cuda.txt": "x==1\ntriton==3.10.0\n    # via torch\n"}),
    ),
    Case("vllm: the same rows", R, BAD, ("same rows",), repo(**{NAME: (KEPT / FILE).read_bytes()})),
    Case("vllm: not compared", R, BAD, (NAME, "compare first"), repo(**{NAME: GOOD})),
    Case("vllm: broken there", R, BAD, (NAME, "compare first"), repo(**{NAME: "{"})),
    Case(
        "vllm: nothing to compare",
        [*R, "--compared", "{t}/c.json"],
        BAD,
        ("--compared {t}/c.json", "has no " + NAME),
        SMALL,
    ),
    Case(
        "vllm: comparison missing",
        [*R, "--compared", "{t}/c.json"],
        BAD,
        ("--compared {t}/c.json: cannot be read",),
        repo(**{NAME: GOOD}),
    ),
    Case(
        "vllm: no comparison",
        [*R, "--compared", "{t}/c.json"],
        BAD,
        ("c.json: not JSON: NaN is no number",),
        repo(**{NAME: GOOD}),
        {"c.json": '{"basis": "measured", "geometric_mean": NaN}'},
    ),
    Case(
        "vllm: other files compared",
        [*R, "--compared", "{t}/c.json"],
        BAD,
        ("compares other files",),
        repo(**{NAME: GOOD}),
        {
            "c.json": json.dumps(
                {
                    "basis": "measured",
                    "device": "h200",
                    "layer": {},
                    "vllm": "0.24.0",
                    "triton": "3.6.0",
                    "kernel_sha256": "0",
                    "first": {"sha256": "0"},
                    "second": {"sha256": "1"},
                    "geometric_mean": 2.0,
                    "warnings": [],
                    "rows": [],
                }
            )
        },
    ),
    Case("vllm: no log", [*R, "--serve-log", "{t}/l"], BAD, ("{t}/l: cannot be read",), SMALL),
    Case(
        "vllm: log of another file",
        [*R, "--serve-log", "{t}/l"],
        BAD,
        ("has no line «Using configuration from",),
        SMALL,
        {"l": "Using configuration from /x/E=1,N=1,device_name=A.json for MoE layer.\n"},
    ),
    Case("verify: nothing", ["verify"], BAD, ("'files'",)),
    Case("verify: no file", ["verify", "{t}/no.json"], BAD, ("{t}/no.json: no such file",)),
    Case(
        "verify: empty folder",
        ["verify", "{t}/d"],
        BAD,
        ("holds no file E=….json",),
        files={"d/x": ""},
    ),
    Case("verify: device", ["verify", "{t}/a.json", "--device", "gb11"], BAD, ("gb10",), files=TWO),
    Case("verify: model", ["verify", "{t}/a.json", "--model", "x"], BAD, ("--model x",), files=TWO),
    Case(
        "verify: workers",
        ["verify", "{t}/a.json", "--workers", "0"],
        BAD,
        ("--workers",),
        files=TWO,
    ),
    Case(
        "verify: landscape",
        ["verify", "{t}/a.json", "--landscape", "{t}/l.csv"],
        BAD,
        ("--landscape {t}/l.csv: no such file",),
        files=TWO,
    ),
    Case(
        "verify: no landscape",
        ["verify", "{t}/a.json", "--landscape", "{t}/b.json"],
        BAD,
        ("{t}/b.json", "landscape"),
        files=TWO,
    ),
    Case("compare: one file", C[:2], BAD, ("'second'",), files=TWO),
    Case("compare: no file", C, BAD, ("{t}/a.json: cannot be read",)),
    Case("compare: a folder", ["compare", "{t}", "{t}"], BAD, ("{t}: cannot be read",)),
    Case("compare: not JSON", C, BAD, ("{t}/b.json: not a fused",), files=TWO | {"b.json": "{"}),
    Case("compare: empty", C, BAD, ("{t}/b.json: has no rows",), files=TWO | {"b.json": "{}"}),
    Case(
        "compare: of AMD",
        C,
        BAD,
        ("{t}/b.json: key 1", "kpack"),
        files=TWO | {"b.json": GOOD.replace("num_warps", "kpack")},
    ),
    Case(
        "compare: deeply nested",
        C,
        BAD,
        ("{t}/b.json: not a fused", "nested too deep"),
        files=TWO | {"b.json": '{"1": ' + "[" * 100_000},
    ),
    Case(
        "compare: huge key",
        C,
        BAD,
        ("b.json: key 10000000000000", "1048576"),
        files=TWO | {"b.json": f'{{"10000000000000": {ROW}}}'},
    ),
    Case("compare: key", C, BAD, ("b.json: key 0",), files=TWO | {"b.json": f'{{"0": {ROW}}}'}),
    Case("compare: batch sizes", [*C, "--batch-sizes", "x"], BAD, ("--batch-sizes x",), files=TWO),
    Case("compare: seed", [*C, "--seed=-1"], BAD, ("--seed -1",), files=TWO),
    Case(
        "compare: both",
        [*C, "--study", "x", "--landscape", "y"],
        BAD,
        ("exclude each other",),
        files=TWO,
    ),
    Case(
        "compare: no study",
        [*C, "--study", "x", "--db", "sqlite:///{t}/kept.db"],
        BAD,
        ("no study 'x'",),
        files=TWO,
    ),
    Case(
        "compare: no landscape", [*C, "--landscape", "{t}/l"], BAD, ("{t}/l: no such",), files=TWO
    ),
    Case("compare: no GPU", C, MISSING, ("no GPU", "--landscape"), files=TWO),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the kept database; nothing may be left in it."""
    database(tmp_path, few=True)
    before = (tmp_path / "kept.db").read_bytes()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    assert (tmp_path / "kept.db").read_bytes() == before
    assert list(work.iterdir()) == []


@pytest.fixture
def run(place: Path, in_process: Run) -> Run:
    def command(*args: str) -> tuple[int, str, str]:
        return in_process(*(arg.replace("{t}", str(place)) for arg in args))

    return command


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input(case: Case, place: Path, run: Run) -> None:
    if case.committed:
        checkout(place / "vllm", case.committed)
    for name, content in (case.files or {}).items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check(run(*case.args), case.code, *(word.replace("{t}", str(place)) for word in case.words))
    if case.committed:
        assert git(place / "vllm", "branch", "--format=%(refname:short)") == "main\n"
        assert git(place / "vllm", "status", "--porcelain") == ""


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40
    assert len({case.id for case in CASES}) == len(CASES)


def test_git_that_knows_nobody(place: Path, run: Run) -> None:
    checkout(place / "vllm")
    git(place / "vllm", "config", "user.useConfigOnly", "true")
    without = [arg for arg in R if arg not in {"--signoff", PERSON}]
    check(run(*without), BAD, "no user.name and user.email", "--signoff")
    git(place / "vllm", "config", "user.name", "Bo")
    git(place / "vllm", "config", "user.email", "bo@example.org")
    code, out, _ = run(*without, "--dest", "{t}/pr")
    assert code == 0
    assert "signed off by Bo <bo@example.org>" in out


def test_a_lock_that_another_git_holds(place: Path, run: Run) -> None:
    checkout(place / "vllm")
    lock = place / "vllm/.git/refs/heads/b.lock"
    lock.write_text("")
    said = run(*R, "--branch", "b", "--dest", "{t}/pr")
    check(said, BAD, "git update-ref failed", "b.lock", "File exists")


def test_git_that_is_not_there(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(place / "vllm")
    monkeypatch.setenv("PATH", str(place))
    check(run(*R), MISSING, "git is not installed")


def test_a_detached_head_and_a_dirty_tree_are_no_hindrance(place: Path, run: Run) -> None:
    folder = checkout(place / "vllm")
    git(folder, "checkout", "-q", "--detach", "v0.24.0")
    (folder / "requirements/cuda.txt").write_text("changed")
    (folder / ".git/index.lock").write_text("")  # another git is at work in the index
    code, out, err = run(*R, "--dest", "{t}/pr")
    assert code == 0, err
    assert "the checkout has changes of its own" in err
    assert (folder / "requirements/cuda.txt").read_text() == "changed"
    assert "commit" in out


def test_a_checkout_of_another_user_or_a_hook(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a calling git hook sets would name another repository; hooks of this one do not run."""
    folder = checkout(place / "vllm")
    other = checkout(place / "other", {"README": "x"})
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    hook = folder / ".git/hooks/reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    code, _, err = run(*R, "--dest", "{t}/pr")
    assert code == 0, err
    monkeypatch.delenv("GIT_DIR")
    assert git(other, "branch", "--format=%(refname:short)") == "main\n"


def test_a_clone_without_contents_is_not_taken_for_one_without_files(place: Path, run: Run) -> None:
    """Git would fetch what a partial clone lacks; here it may not."""
    origin = checkout(place / "origin", repo(**{NAME: (KEPT / FILE).read_bytes()}))
    git(origin, "config", "uploadpack.allowFilter", "true")
    source = f"file://{origin}"
    git(place, "clone", "-q", "--filter=blob:none", "--no-checkout", source, str(place / "vllm"))
    said = run(*R, "--base", "origin/main", "--dest", "{t}/pr")
    check(said, BAD, "lacks the content of", "a partial clone?", "nothing is fetched")
    git(place / "vllm", "checkout", "-q", "origin/main")
    check(run(*R, "--base", "origin/main", "--dest", "{t}/pr"), BAD, "with the same rows")


def test_a_base_that_is_not_checked_out(place: Path, run: Run) -> None:
    """The way of somebody with work of their own: a branch from the fetched main."""
    origin = checkout(place / "origin")
    git(place, "clone", "-q", "--depth", "1", f"file://{origin}", str(place / "vllm"))
    folder = place / "vllm"
    git(folder, "checkout", "-q", "-b", "mine")
    git(folder, "commit", "-q", "--allow-empty", "-m", "mine")
    code, _, err = run(*R, "--dest", "{t}/pr", "--branch", "own")
    assert code == 0
    assert "the branch starts from mine" in err
    code, _, err = run(*R, "--dest", "{t}/pr", "--base", "origin/main", "--branch", "fresh")
    assert code == 0
    assert "the branch starts from" not in err
    assert git(folder, "log", "--format=%s", "origin/main..fresh").count("\n") == 1
    assert git(folder, "rev-parse", "--abbrev-ref", "HEAD") == "mine\n"


def test_a_predicted_study_is_refused(place: Path, run: Run) -> None:
    predicted(f"sqlite:///{place}/p.db")
    checkout(place / "vllm")
    for target in ("folder", "sglang", "vllm"):
        more = ("--repo", "{t}/vllm") if target == "vllm" else ()
        said = run("export", "p", "--to", target, "--db", "sqlite:///{t}/p.db", *more)
        check(said, BAD, "PREDICTED", "--allow-predicted")


def test_keys_that_never_met_the_default(place: Path, run: Run) -> None:
    (place / "cut.db").write_bytes((place / "kept.db").read_bytes())
    # As left by a power cut between the search and the comparison of M=64.
    statement = (
        "PRAGMA foreign_keys=OFF; DELETE FROM trials WHERE phase='confirm' AND workload_id IN "
        "(SELECT id FROM workloads WHERE label='M=64')"
    )
    import sqlite3

    with sqlite3.connect(place / "cut.db") as connection:
        connection.executescript(statement)
    connection.close()
    said = run("export", STUDY, "--to", "folder", "--db", "sqlite:///{t}/cut.db")
    check(said, BAD, "M=64 never met vLLM's default", "goes on from there")


def test_a_study_without_trials_or_of_another_kind(place: Path, run: Run) -> None:
    with Store.open(f"sqlite:///{place}/e.db") as store:
        shape = json.loads((KEPT / "provenance.json").read_text())["shape"]
        study = store.study("e", "moe", {"device": "h200", "shape": shape})
        search = store.search(study, {"basis": "measured"})
        store.start_run(search, store.environment({}), "autotune moe")
        store.study("s", "spec", {"target": "x"})
    for name, word in (("e", "has tuned nothing yet"), ("s", "of kind spec")):
        said = run("export", name, "--to", "folder", "--db", "sqlite:///{t}/e.db")
        check(said, BAD, word)
