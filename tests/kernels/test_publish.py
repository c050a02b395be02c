"""`autotune export`: the kept study of the H200 to a folder, to vLLM and to SGLang."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.export.checkout import Checkout
from autotune.kernels.compile.kernel_source import kernel_info
from autotune.kernels.config_file import parse
from autotune.kernels.export import sglang
from autotune.kernels.export.publish import VllmOptions
from autotune.kernels.export.publish import to_vllm as to_vllm_repo
from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.report.notes import PREDICTED_NOTE
from autotune.kernels.stored import Tuned, load
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
from tests.kernels.test_earlier import later, search
from tests.kernels.test_measured_job import plan

GOLDEN = Path(__file__).parents[1] / "data/golden"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return database(tmp_path)


@pytest.fixture
def run(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_process: Run,
) -> Run:
    """The command line in this process, in a folder of its own."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.chdir(tmp_path)
    return in_process


def to_vllm(run: Run, repo: Path, url: str, *args: str) -> dict[str, Any]:
    code, out, err = run(
        *("export", STUDY, "--to", "vllm", "--repo", str(repo), "--db", url),
        *("--signoff", PERSON, "--json", *args),
    )
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_stored_rows_are_those_of_the_job(url: str, run: Run) -> None:
    code, out, _ = run("export", STUDY, "--to", "folder", "--dest", "d", "--db", url)
    assert code == 0
    assert Path("d", FILE).read_bytes() == (KEPT / FILE).read_bytes()
    where = Path("d").absolute()
    assert f"VLLM_TUNED_CONFIG_FOLDER={where}" in out
    assert f"Using configuration from {where / FILE} for MoE layer." in out


def test_the_numbers_are_those_of_the_report(url: str) -> None:
    with Store.open(url, create=False) as store:
        tuned = load(store, STUDY, 0.01)
    kept = json.loads((KEPT / "provenance.json").read_text())
    assert tuned.overall == pytest.approx(kept["geometric_mean_speedup"])
    for row in kept["rows"]:
        ours = tuned.rows[row["m"]]
        assert ours.us == pytest.approx(row["us"])
        assert ours.default_us == pytest.approx(row["default_us"])
        assert ours.pinned == row["is_default"]
    compared = {b["m"]: b for b in kept["between_keys"] if b["low"] != b["high"]}
    assert {gap.m for gap in tuned.gaps} == set(compared)
    assert all(gap.ratio.value == pytest.approx(compared[gap.m]["ratio"]) for gap in tuned.gaps)


def test_a_greater_least_gain_pins_more(url: str) -> None:
    with Store.open(url, create=False) as store:
        rows = load(store, STUDY, 0.2).rows
    assert [m for m, row in rows.items() if not row.pinned] == [1024, 1536, 2048, 3072, 4096]
    # What the rows of the first choice lost between the keys says nothing of these.
    assert 12 not in rows


def test_vllm_gets_one_file_in_one_signed_commit(tmp_path: Path, url: str, run: Run) -> None:
    configs = kernel_info().path.parent / "configs"
    shipped = {f"{Path(NAME).parent}/{p.name}": p.read_bytes() for p in configs.iterdir()}
    repo = checkout(tmp_path / "vllm", {**SMALL, **shipped})
    (repo / "mine.txt").write_text("not yet committed")
    git(repo, "add", "mine.txt")
    before = git(repo, "status", "--porcelain", "--branch")
    done = to_vllm(run, repo, url)
    branch = done["branch"]
    assert git(repo, "status", "--porcelain", "--branch") == before
    assert git(repo, "rev-parse", "--abbrev-ref", "HEAD").strip() == "main"
    assert git(repo, "rev-list", "--count", f"main..{branch}").strip() == "1"
    assert git(repo, "diff", "--name-status", "main", branch) == f"A\t{NAME}\n"
    assert git(repo, "diff", "--check", "main", branch) == ""
    assert git(repo, "ls-tree", branch, NAME).startswith("100644 blob")
    data = git(repo, "show", f"{branch}:{NAME}")
    assert data.encode() == (KEPT / FILE).read_bytes()
    assert json.dumps(json.loads(data), indent=4) + "\n" == data
    title, blank, *body = git(repo, "log", "-1", "--format=%B", branch).rstrip().split("\n")
    assert title == (
        "[Kernel] Add fused-MoE config for NVIDIA H200: E=128, N=704, fp8_w8a8 (gemma-4-26b-a4b)"
    )
    assert blank == ""
    assert body[-1] == f"Signed-off-by: {PERSON}"
    assert git(repo, "log", "-1", "--format=%an <%ae>%n%cn <%ce>", branch) == f"{PERSON}\n" * 2


def test_it_has_the_form_of_vllms_newer_files(url: str, run: Run) -> None:
    assert run("export", STUDY, "--to", "folder", "--dest", "d", "--db", url)[0] == 0
    shipped = (kernel_info().path.parent / "configs").glob("*device_name=NVIDIA*.json")
    newer = [data for path in shipped if b"triton_version" in (data := path.read_bytes())]
    alike = [
        data for data in newer if json.dumps(json.loads(data), indent=4) + "\n" == data.decode()
    ]
    assert len(alike) > 0.9 * len(newer) > 30
    own = Path("d", FILE).read_bytes()
    assert own.startswith(b'{\n    "triton_version": "')
    assert all(data.startswith(b'{\n    "triton_version": "') for data in alike)
    assert own.endswith(b"\n    }\n}\n")
    assert all(data.endswith(b"\n    }\n}\n") for data in alike)


def test_what_others_wrote_stays_words_in_the_pull_request(
    tmp_path: Path, url: str, run: Run
) -> None:
    """PULL_REQUEST.md unescaped: subjects and names of the checkout, the model, a server's log."""
    near = str(Path(NAME).with_name("E=128,N=704,device_name=`a`|<b>,dtype=x.json"))
    repo = checkout(tmp_path / "vllm", {**SMALL, near: "{}"})
    subject = "<script>alert(1)</script> | [x](http://y) `z` -->"
    git(repo, "commit", "-q", "--amend", "-m", subject)
    log = tmp_path / "serve.log"
    log.write_text(f"Using configuration from /t/{FILE} for MoE \x1b[2J\x07layer <b>.\n")
    more = ("--serve-log", str(log), "--model-name", "<i>|`m`-->", "--ai-assistance", "None.")
    done = to_vllm(run, repo, url, *more)
    text = Path(done["files"][0]).read_text()
    assert all(c.isprintable() or c == "\n" for c in text)
    prose = re.sub(r"(?m)`[^`\n]*`|^    .*$", "", text.partition("-->")[2])
    assert not re.search(
        r"<(script|b|i)>|(?<!\\)\[x\]|-->", prose.replace("<!-- markdownlint-disable -->", "")
    )
    for line in text.split("\n"):
        if line.startswith("| `E="):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4
            assert line.count("`") - line.count("\\`") == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_text_of_the_pull_request(tmp_path: Path, url: str, run: Run) -> None:
    repo = checkout(tmp_path / "vllm")
    log = tmp_path / "serve.log"
    log.write_text(
        f"INFO x\nINFO [fused_moe.py:1] Using configuration from /t/{FILE} for MoE layer.\n"
    )
    done = to_vllm(
        *(run, repo, url, "--serve-log", str(log), "--cuda", "13.0"),
        *("--ai-assistance", "None.", "--model-name", "Gemma 4 26B-A4B"),
    )
    text = Path(done["files"][0]).read_text()
    golden = GOLDEN / "PULL_REQUEST.md"
    assert text == golden.read_text()
    assert Path(done["files"][0]).parent == tmp_path / "outputs" / STUDY


def facts_of(tuned: Tuned, folder: Path, **options: Any) -> dict[str, str]:
    """The table of facts in the text of the pull request."""
    repo = checkout(folder / "vllm")
    given = VllmOptions(dest=folder / "pr", person=PERSON, **options)
    to_vllm_repo(tuned, Checkout.open(repo, "--repo"), given)
    shutil.rmtree(repo)
    lines = (folder / "pr/PULL_REQUEST.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {cell[0]: cell[1] for cell in cells if len(cell) == 2}


def test_only_gpus_that_measured_are_named(tmp_path: Path, url: str) -> None:
    with Store.open(url, create=False) as store:
        tuned = load(store, STUDY, 0.01)
    assert tuned.gpus == ()  # of before they were stored
    gpus = [
        {"name": name, "uuid": uuid}
        for name, uuid in (("NVIDIA H200", "GPU-A"), ("NVIDIA GB10", "GPU-B"))
    ]
    mixed = replace(tuned, environments=(tuned.environments[-1] | {"gpus": gpus},))
    assert facts_of(mixed, tmp_path)["GPU UUID"] == "GPU-A"
    assert facts_of(replace(mixed, gpus=("GPU-C",)), tmp_path)["GPU UUID"] == "GPU-C"
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE measurements SET details = json_set(details, '$.gpu', 'GPU-D')")
        connection.execute(
            "UPDATE measurements SET details = json_set(details, '$.gpu', '0') WHERE trial_id = 1"
        )
    with Store.open(url, create=False) as store:
        assert load(store, STUDY, 0.01).gpus == ("GPU-D",)


def test_the_command_names_the_gpus_of_the_trials(tmp_path: Path, url: str, run: Run) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE measurements SET details = json_set(details, '$.gpu', 'GPU-D')")
    done = to_vllm(run, checkout(tmp_path / "vllm"), url)
    assert "| GPU UUID | GPU-D |" in Path(done["files"][0]).read_text()


def test_a_routing_that_is_not_uniform_is_a_fact(tmp_path: Path, url: str) -> None:
    with Store.open(url, create=False) as store:
        tuned = load(store, STUDY, 0.01)
    assert "experts are chosen" not in facts_of(tuned, tmp_path)
    routed = replace(tuned, setup=tuned.setup | {"routing": Routing(exponent=1.5).as_json()})
    assert facts_of(routed, tmp_path)["experts are chosen"] == "zipf:1.5"


def test_what_is_missing_of_the_file_is_said(tmp_path: Path, url: str, run: Run) -> None:
    """Few keys, and keys that the study has under an older driver."""
    assert "few keys" not in run("export", STUDY, "--to", "folder", "--db", url)[2]
    other = f"sqlite:///{tmp_path}/b.db"
    with Store.open(other) as store:
        search(store, plan(), (1, 8))
        search(store, later(plan()), (8,))
    code, _, err = run("export", "fake", "--to", "folder", "--db", other)
    assert code == 0, err
    assert "Warning: few keys in the file (1): vLLM uses the nearest one" in err
    assert "Warning: not in the file: M=1, tuned in this study under another setup" in err


def test_a_template_that_asks_about_ai_is_answered_once(tmp_path: Path, url: str, run: Run) -> None:
    asks = "Thanks!\n\n## Purpose\n\n## Screenshots\n\nNone.\n\n## Was AI used?\n\n(yes or no)\n"
    repo = checkout(tmp_path / "vllm", {**SMALL, ".github/PULL_REQUEST_TEMPLATE.md": asks})
    done = to_vllm(run, repo, url, "--ai-assistance", "For the wording only.")
    text = Path(done["files"][0]).read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Purpose",
        "## Screenshots",
        "## Was AI used?",
        "## Test Plan",
        "## Test Result",
    ]
    assert text.count("For the wording only.") == 1
    assert "(yes or no)" not in text
    assert "## Screenshots\n\nNone.\n" in text


def test_a_predicted_study_says_so_everywhere(tmp_path: Path, run: Run) -> None:
    url = f"sqlite:///{tmp_path}/p.db"
    predicted(url)
    code, _, err = run("export", "p", "--to", "folder", "--db", url)
    assert code == 2
    assert "PREDICTED" in err
    assert "--allow-predicted" in err
    assert not Path("outputs").exists()
    for target in ("folder", "sglang"):
        flags = ("--to", target, "--dest", target, "--allow-predicted", "--db", url)
        code, _, err = run("export", "p", *flags)
        assert code == 0
        assert PREDICTED_NOTE in err
    (file,) = Path("folder").iterdir()
    assert json.loads(file.read_bytes())["triton_version"] == (
        "3.8.0 (PREDICTED by autotune, not measured)"
    )
    assert parse(file.read_bytes(), "f")
    assert "PREDICTED" in Path("sglang/README.md").read_text()
    repo = checkout(tmp_path / "vllm")
    flags = ("--repo", str(repo), "--signoff", PERSON, "--allow-predicted", "--db", url)
    assert run("export", "p", "--to", "vllm", *flags)[0] == 0
    (text,) = Path("outputs").rglob("PULL_REQUEST.md")
    assert text.read_text().count("PREDICTED") >= 3
    assert "measured on" not in text.read_text().lower()
    branch = git(repo, "for-each-ref", "--format=%(refname)", "refs/heads/moe-config-*").strip()
    assert "PREDICTED" in git(repo, "log", "-1", "--format=%s", branch)


def test_sglang_gets_its_own_name_and_form(url: str, run: Run) -> None:
    code, out, err = run("export", STUDY, "--to", "sglang", "--dest", "s", "--db", url)
    assert code == 0
    path = Path("s/configs/triton_3_6_0") / FILE.replace(".json", ",per_channel_quant=True.json")
    document = json.loads(path.read_text())
    # SGLang's reader makes a number of every key.
    assert {int(key): row for key, row in document.items()} == {
        m: row.params for m, row in parse((KEPT / FILE).read_bytes(), "f").items()
    }
    assert "SGLANG_MOE_CONFIG_DIR" in out
    assert "not with SGLang's" in err


@pytest.mark.parametrize(
    ("scheme", "block", "name"),
    [
        ("tensor", None, "E=128,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"),
        (
            "block",
            [64, 128],
            "E=128,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[64, 128].json",
        ),
    ],
)
def test_names_for_sglang(scheme: str, block: list[int] | None, name: str) -> None:
    """Unlike vLLM it leaves the blank in a block shape."""
    kept = json.loads((KEPT / "provenance.json").read_text())["shape"]
    shape = MoeShape.from_json(kept | {"scheme": scheme, "block_shape": block})
    assert sglang.file_name(shape, "NVIDIA GB10") == name


def test_git_itself_finds_nothing_wrong(tmp_path: Path, url: str, run: Run) -> None:
    repo = checkout(tmp_path / "vllm")
    to_vllm(run, repo, url)
    subprocess.run(["git", "-C", str(repo), "fsck", "--strict"], check=True, capture_output=True)
    assert git(repo, "reflog", "HEAD").count("\n") == 1
