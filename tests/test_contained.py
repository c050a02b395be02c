"""``autotune moe --launcher docker`` on the host's side, with a stand-in for docker."""

from __future__ import annotations

import importlib.metadata
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from autotune.machine.image_facts import TAKE, requirements
from tests.serving.fake_docker import FACTS, IMAGE_ID
from tests.support.commands import BAD, DONE, MISSING, Command

FAKE = """\
#!{python}
import json, os, sys
args, folder = sys.argv[1:], {folder!r}
answers = json.load(open(folder + "/answers"))
if args[0] in answers:
    print(answers[args[0]])
elif args[0] == "run" and args[args.index("--entrypoint") + 1] == "sh":
    print("autotune-image " + json.dumps(answers["facts"]))
elif args[0] == "run":
    json.dump({{"args": args, "env": dict(os.environ)}}, open(folder + "/ran", "w"))
    sys.exit(answers["status"])
"""
PACKAGES = {"vllm": "0.33.0", "triton": "3.8.0"}
PLAIN = "correct-horse-battery"
MOE = ("moe", "--launcher", "docker", "--image", "img:1", "--device", "gb10")


class Docker:
    """A folder with a ``docker`` that is the only one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers: dict[str, object] = {
            "version": "28.0",
            "--version": "Docker version 28.0",
            "info": "[]",
            "image": json.dumps([{"Id": f"sha256:{IMAGE_ID}"}]),
            "facts": FACTS | {"packages": PACKAGES | installed()},
            "status": 0,
        }
        program = root / "bin" / "docker"
        program.parent.mkdir()
        program.write_text(FAKE.format(python=sys.executable, folder=str(root)))
        program.chmod(0o755)
        self.tell()

    def tell(self, **changes: object) -> None:
        self.answers |= changes
        (self.root / "answers").write_text(json.dumps(self.answers))

    @property
    def ran(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads((self.root / "ran").read_text())
        return found

    def values(self, flag: str) -> list[str]:
        args = self.ran["args"]
        return [args[i + 1] for i, word in enumerate(args) if word == flag]


def installed() -> dict[str, str]:
    """As if the image had all that autotune needs."""
    return {one.name: importlib.metadata.version(one.name) for one in requirements()}


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    made = Docker(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autotune.machine.image_facts._told", _uncached())
    return made


def _uncached() -> object:
    from autotune.machine import image_facts

    return image_facts._told.__wrapped__


def test_the_container_gets_what_flags_name_and_runs_as_the_user(
    docker: Docker, in_process: Command
) -> None:
    (docker.root / "space.yaml").write_text("")
    given = ("--space", "space.yaml", "--batch-sizes", "1,8", "--gpus", "device=1", "--json")
    code, out, err = in_process(*MOE, *given, "--db", "sqlite:///d/a.db", "--events", "e.jsonl")
    assert (code, out) == (DONE, ""), err
    args, root = docker.ran["args"], docker.root
    assert args[:5] == ["run", "--rm", "--interactive", "--init", "--name"]
    assert docker.values("--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert docker.values("--gpus") == ["device=1"]
    assert docker.values("--workdir") == [str(root)]
    mounts = docker.values("--volume")
    for place in ("outputs", "d", "e.jsonl"):
        assert f"{root}/{place}:{root}/{place}" in mounts
        assert (root / place).exists(), "docker would make it, as root"
    assert f"{root}/space.yaml:{root}/space.yaml:ro" in mounts
    assert any(mount.endswith(":/autotune/src/autotune:ro") for mount in mounts)
    assert f"{root}/cache/autotune/image-{IMAGE_ID[:12]}/home:/autotune/home" in mounts
    assert not any(mount.split(":")[0] in {"/", str(Path.home()), str(root)} for mount in mounts)
    inside = args[args.index(IMAGE_ID) + 1 :]
    assert inside[0] == "-P"
    inner = inside[inside.index("--") + 1 :]
    assert inner[:4] == [FACTS["executable"], "-m", "autotune", "moe"]
    assert not {"--launcher", "--image", "--gpus"} & {*inner}
    assert inner[inner.index("--space") + 1] == "space.yaml"
    (told,) = [v for v in docker.values("--env") if v.startswith("AUTOTUNE_CONTAINER=")]
    outside = json.loads(told.partition("=")[2])
    assert outside["command"].startswith("autotune moe --launcher docker --image img:1")
    assert (outside["image"], outside["image_id"]) == ("img:1", IMAGE_ID)
    assert stat.S_IMODE((root / "cache").stat().st_mode) & 0o700


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (0, DONE, None),
        (1, 1, None),
        (BAD, BAD, None),
        (4, 4, None),
        (130, 130, None),
        (125, MISSING, "cannot be started; docker says why above (of «could not select"),
        (127, MISSING, "has no such program"),
        (137, MISSING, "ended with status 137: something killed it"),
    ],
)
def test_the_commands_own_code_is_handed_on(
    status: int, code: int, words: str | None, docker: Docker, in_process: Command
) -> None:
    docker.tell(status=status)
    got, _, err = in_process(*MOE)
    assert got == code
    said = [line for line in err.splitlines() if line.startswith("autotune: ")]
    assert len(said) == bool(words), "the command inside has said the rest"
    assert words is None or words in said[0]


def test_a_secret_reaches_the_container_by_name(docker: Docker, in_process: Command) -> None:
    code, out, err = in_process(*MOE, "--docker-arg", f"--env TOKEN={PLAIN}")
    assert code == DONE, err
    assert PLAIN not in out + err + json.dumps(docker.ran["args"])
    assert "TOKEN" in docker.values("--env")
    assert docker.ran["env"]["TOKEN"] == PLAIN  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"packages": {"vllm": "0.19.0"}}, BAD, f"take {TAKE}"),
        ({"has_vllm": False}, BAD, "has no vLLM"),
        ({"python": [3, 10, 12]}, BAD, "its Python 3.10.12 is too old, 3.11"),
        ({"packages": {"vllm": "0.33.0", "triton": "3.7.1"}}, BAD, "its Triton 3.7.1"),
        ({"packages": {**installed(), "pydantic": "2.1"}}, BAD, "has pydantic 2.1 (needed:"),
        ({"packages": {"vllm": "0.33.0"}, "has_pip": False}, MISSING, "and pip; build an image"),
    ],
)
def test_an_image_that_cannot_do_it_is_refused_in_one_line(
    changes: dict[str, object], code: int, words: str, docker: Docker, in_process: Command
) -> None:
    docker.tell(facts=FACTS | changes)
    got, out, err = in_process(*MOE)
    assert (got, out) == (code, "")
    assert words in err.splitlines()[-1]
    assert not (docker.root / "ran").exists()


def test_without_an_engine_there_is_one_line(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = in_process(*MOE)
    assert code == MISSING
    assert err == "autotune: docker: no such program; is it installed and in PATH?\n"


# ------------------------------------------------------------------------------------------
# a host with nothing but the package and what it needs


@pytest.fixture(scope="module")
def core_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install .` brings, found by the metadata, and nothing else."""
    folder = tmp_path_factory.mktemp("core")
    wanted, done = [*requirements()], set[str]()
    while wanted:
        one = wanted.pop()
        if one.name.lower() in done:
            continue
        done.add(one.name.lower())
        found = importlib.metadata.distribution(one.name)
        for text in found.requires or []:
            needed = Requirement(text)
            extras = one.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                wanted.append(needed)
        for file in found.files or []:
            top = file.parts[0]
            if top not in {"..", "__pycache__"} and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def core(folder: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    site = f"import sys; sys.path[:0] = [{str(root)!r}, {str(folder)!r}]; "
    code = site + "from autotune.cli import main; sys.argv[0] = 'autotune'; main()"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [f"{sys.base_prefix}/bin/python3", "-S", "-c", code, *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--help",), DONE, "moe"),
        (("devices",), DONE, "gb10"),
        (("studies",), BAD, "no such database"),
        (("moe", "--device", "gb10"), MISSING, "--launcher docker --image IMAGE` needs none here"),
        ((*MOE, "--image", "img:1"), MISSING, "no such program"),
    ],
)
def test_commands_work_without_torch_and_vllm(
    args: tuple[str, ...],
    code: int,
    words: str,
    core_only: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = core(core_only, tmp_path, *args)
    assert ran.returncode == code, ran.stderr
    assert words in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr


def test_every_module_is_imported_without_torch_and_vllm(core_only: Path) -> None:
    root = Path(__file__).parents[1]
    code = (
        f"import sys; sys.path[:0] = [{str(root)!r}, {str(core_only)!r}]\n"
        "import importlib, pkgutil, autotune\n"
        "for one in pkgutil.walk_packages(autotune.__path__, 'autotune.'):\n"
        "    last, room = one.name.split('.')[-1], one.name.split('.')[1]\n"
        "    if last not in {'__main__', 'problem', 'process'} and room != 'web':\n"
        "        try:\n"
        "            importlib.import_module(one.name)\n"
        "        except ModuleNotFoundError as error:\n"
        "            assert error.name == 'ray', error  # an extra, for --ray alone\n"
        "assert not {'torch', 'vllm', 'triton'} & sys.modules.keys()\n"
        "assert importlib.util.find_spec('torch') is None, 'it is not there to be imported'\n"
    )
    command = [f"{sys.base_prefix}/bin/python3", "-S", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
