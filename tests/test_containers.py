"""Commands in containers of a real engine (podman with runc), on an image made of files."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from autotune.core import MissingEnvironmentError
from autotune.machine import image_packages
from autotune.machine.containers import find_engine, find_image
from autotune.machine.image_facts import image_facts
from autotune.serving.server.launchers import _metadata_folder
from tests.serving import tiny_models as models
from tests.serving.tiny_models import TinyModels
from tests.support.engines import IMAGE, OWN_VARIABLES, VENV, Podman, mounts, started_podman
from tests.support.processes import wait_for
from tests.test_kill import SPACE, count

pytestmark = pytest.mark.container

BINARY = str(Path(sys.executable).with_name("autotune"))
MOE = "moe --device gb10 --space space.yaml --workers 1 --batch-sizes"
IN_IMAGE = ["--launcher", "podman", "--image", IMAGE, "--gpus", "none"]
USER = 12345
"""Who has no name on this machine, and in no container."""


tiny_models = models.tiny_models  # a fixture


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    with started_podman() as engine:
        yield engine


def command(batch_sizes: str, *more: str) -> list[str]:
    return [BINARY, *MOE.split(), batch_sizes, *IN_IMAGE, *mounts(), *more]


def make_space(folder: Path, columns: str) -> None:
    """A few candidates: each is compiled for real."""
    text = SPACE.read_text().replace("[16, 32]", "[16]").replace("[32, 64]", columns)
    (folder / "space.yaml").write_text(text.replace("[2, 3, 4, 5]", "[2, 3]"))


@pytest.fixture(autouse=True)
def space(tmp_path: Path) -> None:
    make_space(tmp_path, "[64]")


def run(words: list[str], folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300
    )


@contextmanager
def at_work(podman: Podman, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, when it has stored trials; its space is larger."""
    make_space(folder, "[32, 64]")
    before = count(folder / "outputs")
    with subprocess.Popen(
        command("1,16,512"), cwd=folder, env=podman.env, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: process.poll() is not None or count(folder / "outputs") > before + 1, 120)
        assert process.poll() is None, process.stderr
        yield process


@pytest.mark.kill
def test_after_ctrl_c_and_kill_9_the_next_leaves_the_users_files(
    podman: Podman, tmp_path: Path
) -> None:
    """One study: interrupted, killed, run to its end, and run again."""
    with at_work(podman, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        said = process.stderr.read()
    assert said.count("autotune: interrupted") == 1
    assert "Traceback" not in said
    assert podman.containers() == []

    with at_work(podman, tmp_path) as process:
        assert len(podman.containers()) == 1
        process.kill()
    wait_for(lambda: not podman.containers(), 45)

    before = count(tmp_path / "outputs")
    assert before
    ran = run(command("1"), tmp_path, podman.env)
    assert count(tmp_path / "outputs") >= before
    check_files(ran, tmp_path)
    assert podman.containers() == []

    again = run(command("1", "--json"), tmp_path, podman.env)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["compiled"] == 0, "and stdout is the command's alone"
    with closing(sqlite3.connect(tmp_path / "outputs/autotune.db")) as database:
        (done,) = database.execute("SELECT count(*) FROM runs WHERE status = 'done'").fetchone()
    assert done == 2


def check_files(ran: subprocess.CompletedProcess[str], folder: Path) -> None:
    """The command ended well, says how its table is tried, and stored what it was run with."""
    assert ran.returncode == 0, ran.stderr
    (table,) = folder.glob("outputs/*/predicted/E=*.json")
    assert ran.stdout.splitlines()[-1] == (
        "Try it:  podman run --rm --ipc host --publish 127.0.0.1:8000:8000 --volume "
        f"{shlex.quote(f'{table.parent}:/moe:ro')} --env VLLM_TUNED_CONFIG_FOLDER=/moe "
        f"--entrypoint vllm {IMAGE} serve …"
    )
    told = json.loads((table.parent / "provenance.json").read_text())
    assert told["command"] == shlex.join(["autotune", *command("1")[1:]]), "as it was typed"
    assert told["environment"]["image"]["name"] == IMAGE
    assert len(told["environment"]["image"]["id"]) == 64


@pytest.mark.kill
@pytest.mark.nightly  # by day the command itself is killed, and interrupted
def test_a_killed_client_of_the_engine_ends_the_container(podman: Podman, tmp_path: Path) -> None:
    with at_work(podman, tmp_path) as process:
        (client,) = [
            int(pid.name)
            for pid in Path("/proc").iterdir()
            if pid.name.isdigit() and _parent(pid) == process.pid
        ]
        os.kill(client, signal.SIGKILL)
        assert process.wait(60) == 3
        assert process.stderr is not None
        assert "something killed it" in process.stderr.read().splitlines()[-1]
    wait_for(lambda: not podman.containers(), 45)


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.fixture
def here(
    podman: Podman,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_process: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process, which spares a start of it; containers are real."""
    monkeypatch.chdir(tmp_path)
    for name in OWN_VARIABLES:
        monkeypatch.setenv(name, podman.env[name])
    return in_process


def test_bad_input_is_said_once_with_the_commands_own_code(
    here: Callable[..., tuple[int, str, str]],
) -> None:
    code, _, said = here(*command("1", "--model", "no-such-model")[1:])
    assert code == 2
    lines = [line for line in said.splitlines() if line.startswith("autotune: ")]
    assert len(lines) == 1
    assert "no-such-model" in lines[0]


@pytest.fixture
def service(podman: Podman, tmp_path: Path) -> Iterator[str]:
    """An engine that runs as root, behind a socket, as docker's daemon does."""
    place = Path(tmp_path.anchor) / "tmp" / f"autotune-{os.getpid()}.sock"  # a path of 108 at most
    listen = ["podman", "system", "service", "--time", "0", f"unix://{place}"]
    with subprocess.Popen(listen, env=podman.env, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: place.exists() and _answers(place))
            place.chmod(0o666)
            yield f"unix://{place}"
        finally:
            server.terminate()
            place.unlink(missing_ok=True)
            podman.run("rm", "--all", "--force", "--time", "0")


NOTHING_REMOVES_ITSELF = """\
#!/bin/sh
for word; do shift; [ "$word" = --rm ] || set -- "$@" "$word"; done
exec {docker} "$@"
"""
"""Docker's client waits for the removal of a container with ``--rm``, and podman 4.3 then asks
without a pause whether it is gone (podman#18150): that takes a core, and the lock that the removal
needs, for minutes on a busy machine. The end of a container comes as an event."""


def _answers(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(place)) == 0


@pytest.mark.nightly  # it takes half a minute; under xdist it hung while the run root was too long
def test_files_of_a_daemon_that_is_root_are_the_users(
    podman: Podman, service: str, tmp_path: Path
) -> None:
    """Docker's own client where it is here, which cannot tell podman's socket from docker's."""
    docker = shutil.which("docker")
    if docker is None or shutil.which("setpriv") is None:
        pytest.skip("docker's client or setpriv is not here")
    client = tmp_path / "docker"
    client.write_text(NOTHING_REMOVES_ITSELF.format(docker=docker))
    client.chmod(0o755)
    (tmp_path / "cache").mkdir()
    for path in (tmp_path, *tmp_path.iterdir()):
        os.chown(path, USER, USER)
    (tmp_path.parent).chmod(0o755)
    drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    # The interpreter lies in root's home on some machines: the command may read it, no more.
    drop += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    words = command("1")
    words[words.index("podman")] = "docker"
    env = {
        **podman.env,
        "DOCKER_HOST": service,
        "PATH": f"{tmp_path}:{podman.env['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    ran = run([*drop, *words], tmp_path, env)
    assert ran.returncode == 0, ran.stderr
    files = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in files} == {(USER, USER)}
    assert any(path.suffix == ".db" for path in files)
    assert "Try it:  docker run" in ran.stdout


# ------------------------------------------------------------------------------------------
# images


def test_what_an_image_holds_and_whose_pip_adds_what_it_lacks(
    podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OWN_VARIABLES:
        monkeypatch.setenv(name, podman.env[name])
    engine = find_engine("podman")
    image = find_image(engine, IMAGE)
    seen = [word.replace("--mount", "--volume") for word in mounts()]
    facts = image_facts(engine, image, seen)
    assert facts.has_vllm
    assert facts.vllm is not None
    assert facts.executable == f"{VENV}/bin/python3"
    assert not facts.outdated()

    wheel = tmp_path / "wheels" / "lacking-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("lacking.py", "there = True\n")
        head = "Metadata-Version: 2.1\nName: lacking\nVersion: 1.0\n"
        archive.writestr("lacking-1.0.dist-info/METADATA", f"{head}Requires-Dist: psutil>=1\n")
        archive.writestr("lacking-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("lacking-1.0.dist-info/RECORD", "")
    more = [*seen, "--volume", f"{wheel.parent}:/wheels:ro", "--env", "PIP_NO_INDEX=1"]
    more += ["--env", "PIP_FIND_LINKS=/wheels"]
    cache = tmp_path / "cache"
    cache.mkdir()
    with pytest.raises(MissingEnvironmentError, match=r"its pip fails: .*No matching"):
        image_packages.installed_for(engine, image, facts, ["absent>=1"], more, cache)
    assert list(cache.iterdir()) == []
    folder = image_packages.installed_for(engine, image, facts, ["lacking>=1"], more, cache)
    assert (folder / "lacking.py").is_file()
    assert not list(folder.glob("psutil*")), "what the image has is left as it is"
    assert list(cache.iterdir()) == [folder]
    # Without the wheels, so that only what is kept can be found.
    assert image_packages.installed_for(engine, image, facts, ["lacking>=1"], [], cache) == folder


def test_an_image_that_is_too_old_is_refused_with_the_one_to_take(
    here: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "old" / "vllm").mkdir(parents=True)
    (tmp_path / "old" / "vllm" / "__init__.py").write_text("")
    (tmp_path / "old" / "vllm-0.19.0.dist-info").mkdir()
    (tmp_path / "old" / "vllm-0.19.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.19.0\n"
    )
    more = ["--mount", f"{tmp_path}/old:/old:ro", "--docker-arg", "--env PYTHONPATH=/old"]
    code, _, said = here(*command("1", *more)[1:])
    assert code == 2
    (line,) = said.splitlines()
    assert "its vLLM 0.19.0 is too old, 0.24 or newer is needed" in line
    assert "take vllm/vllm-openai:v0.33.0 (vLLM 0.33, Triton 3.8 and CUDA 13)" in line
    assert not (tmp_path / "outputs").exists()


def test_an_image_that_is_nowhere_or_has_no_python(
    here: Callable[..., tuple[int, str, str]],
) -> None:
    words = [*MOE.split(), "1", "--launcher", "podman", "--gpus", "none", "--image"]
    code, _, said = here(*words, "localhost/absent:1")
    assert code == 3
    assert "is not here, and `podman pull localhost/absent:1` fails" in said.splitlines()[-1]
    code, _, said = here(*words, IMAGE)  # without mounts its root is empty
    assert code == 3
    assert said.splitlines()[-1].startswith(f"autotune: --image {IMAGE}: its Python cannot")


# ------------------------------------------------------------------------------------------
# servers


def test_servers_of_an_image_with_another_entry_point(
    podman: Podman, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """The server is a stand-in; engine, image, entry point, ports and volumes are real."""
    tests = Path(__file__).parent
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    fake = tests / "serving" / "fake_serving.py"
    program.write_text(f'#!/bin/sh\nexec {VENV}/bin/python3 {fake} "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{VENV}/bin:/usr/bin:/bin"
    podman.make_image("localhost/ngc:1", f"ENV PATH={path}", 'ENTRYPOINT ["/usr/bin/false"]')
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "Q {i}"}}\n' for i in range(5)))
    words = [BINARY, "spec", "--launcher", "podman", "--image", "localhost/ngc:1", *mounts()]
    words += ["--mount", f"{program.parent}:{program.parent}:ro", "--mount", f"{tests}:{tests}:ro"]
    words += ["--gpus", "none", "--target", str(tiny_models.qwen3), "--drafter", "ngram"]
    words += ["--gamma", "0,2", "--prompts", "p.jsonl", "--study", "d", "--json"]
    words += ["--server-arg=--kv-cache-memory-bytes=268435456", "--concurrency", "1"]
    words += ["--max-tokens", "24", "--waves", "1", "--repeats", "6", "--confirm-boots", "1"]
    words += ["--confirm", "in-turn", "--env", 'FAKE_SERVING={"base_ms": 20.0, "draft_ms": 0.1}']
    ran = run(words, tmp_path, podman.env)
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    shown = podman.run("image", "inspect", "--format", "{{.Id}}", "localhost/ngc:1")
    assert document["setup"]["image_id"] == shown.stdout.strip()
    # By so much that a busy machine does not hide it.
    assert document["best"]["candidate"]["gamma"] == 2
    assert len({row["log"] for row in document["trials"]}) == 1, "the mounted dial turns one server"
    script = (tmp_path / "outputs/d/spec/serve.sh").read_text().splitlines()[-1]
    assert "--entrypoint vllm localhost/ngc:1 serve" in script
    names = podman.run("volume", "ls", "--format", "{{.Name}}").stdout.split()
    short = document["setup"]["image_id"][:12]
    assert {f"autotune-{short}-{kind}" for kind in ("vllm", "triton", "flashinfer")} <= {*names}
    assert podman.containers() == []


@pytest.mark.server
@pytest.mark.nightly
def test_real_servers_in_real_containers(
    podman: Podman, tiny_models: TinyModels, tmp_path: Path
) -> None:
    words = [BINARY, "spec", "--launcher", "podman", "--image", IMAGE, *mounts(), "--gpus", "none"]
    words += ["--target", str(tiny_models.qwen3), "--drafter", "ngram", "--gamma", "0,2"]
    words += ["--server-arg=--enforce-eager --max-model-len 1024", "--study", "d", "--json"]
    words += ["--server-arg=--kv-cache-memory-bytes 268435456", "--concurrency", "1"]
    # The CPU build has metadata of another name, which no image has.
    folder = _metadata_folder(tmp_path)
    if folder is not None:
        words += ["--mount", f"{folder}:{folder}:ro", "--env", f"PYTHONPATH={folder}"]
    for text in ("HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "VLLM_CPU_CI_ENV=1"):
        words += ["--env", text]
    words += ["--max-tokens", "24", "--waves", "1", "--repeats", "6", "--confirm-boots", "1"]
    words += ["--confirm", "in-turn"]
    ran = subprocess.run(
        words,
        cwd=tmp_path,
        env=podman.env,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["setup"]["vllm"] is not None
    assert podman.containers() == []
