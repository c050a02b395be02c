"""Bad input around launchers and several targets: one line, the right code, nothing started."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from autotune.serving.server.launchers import free_port
from tests.serving.tiny_models import TinyModels
from tests.support.commands import refused

SMALL = "--server-arg '--kv-cache-memory-bytes 268435456'"
"""What is free on the machine of the test then decides nothing."""
PAIR = "--target {m} --drafter ngram"
DOCKER = f"--launcher docker {PAIR} {SMALL}"
URL = "--launcher url --url http://127.0.0.1:{port}"
LOCAL = f"{PAIR} {SMALL} --vllm {{t}}/never"

CASES: dict[str, tuple[str, int, str]] = {
    "no such launcher": (f"{LOCAL} --launcher lxc", 2, "not one of local, docker, podman, url"),
    "no target": ("--drafter ngram", 2, "--target: is missing"),
    "no drafter": ("--target {m}", 2, "--drafter: is missing"),
    # docker
    "docker without image": (DOCKER, 2, "needs --image, such as vllm/vllm-openai:v"),
    "docker and a program": (f"{DOCKER} --image i --vllm vllm", 2, "--vllm goes with"),
    "docker and a URL": (f"{DOCKER} --image i --url http://h", 2, "--url goes with"),
    "image is empty": (f"{DOCKER} --image ''", 2, "--image"),
    "mount of nothing": (f"{DOCKER} --image i --mount {{t}}/none:/x", 2, "no such file"),
    "mount to nowhere": (f"{DOCKER} --image i --mount {{t}}:x", 2, "expected HOST"),
    "mount twice": (f"{DOCKER} --image i --mount {{t}}:/x --mount {{m}}:/x", 2, "mounted twice"),
    "mount of a model with a colon": (
        "--launcher docker --image i --target '{t}/a:b' --drafter ngram",
        2,
        "colon",
    ),
    "gpus are two words": (f"{DOCKER} --image i --gpus 'a b'", 2, "--gpus"),
    "gpus is empty": (f"{DOCKER} --image i --gpus ''", 2, "--gpus"),
    "docker argument unclosed": (f"{DOCKER} --image i --docker-arg '\"x'", 2, "--docker-arg"),
    "no docker": (f"{DOCKER} --image i --gamma 0,2", 3, "docker: no such program"),
    # local
    "mount without image": (f"{LOCAL} --mount {{t}}:/x", 2, "needs --image"),
    "gpus of a process": (f"{LOCAL} --gpus 2", 2, "--gpus goes with --launcher docker"),
    "docker argument of a process": (f"{LOCAL} --docker-arg x", 2, "--docker-arg goes with"),
    "header of a process": (f"{LOCAL} --header 'A: {{secret}}'", 2, "--header goes with"),
    "colon in what compose mounts": (
        "--image i --target '{t}/a:b' --drafter ngram --vllm {t}/never",
        2,
        "colon",
    ),
    "a key for the server": (
        f"{PAIR} --server-arg '--api-key {{secret}}'",
        2,
        "shut the tuner out",
    ),
    "a key in the environment": (f"{LOCAL} --env VLLM_API_KEY={{secret}}", 2, "shut the tuner"),
    # url
    "no URL": ("--launcher url", 2, "needs --url"),
    "nobody there": (URL, 3, "nobody answers"),
    "URL without scheme": ("--launcher url --url localhost:8000", 2, "expected such as"),
    "URL with a password": ("--launcher url --url http://u:{secret}@h", 2, "as --header"),
    "URL with a key": ("--launcher url --url 'http://h?key={secret}'", 2, "as --header"),
    "URL with a port beyond all": ("--launcher url --url http://h:99999", 2, "--url"),
    "URL and a drafter": (f"{URL} --drafter ngram", 2, "--drafter would change nothing"),
    "URL and gamma": (f"{URL} --gamma 2", 2, "--gamma would change nothing"),
    "URL and server flags": (f"{URL} --server-arg --x", 2, "--server-arg would change nothing"),
    "URL and its default": (f"{URL} --min-gain 1%", 2, "--min-gain would change nothing"),
    "URL and MoE files": (f"{URL} --moe-config {{t}}", 2, "--moe-config would change"),
    "URL and an image": (f"{URL} --image i", 2, "--image goes with"),
    "two models of a URL": (f"{URL} --target a --target b", 2, "measures one model"),
    "header without colon": (f"{URL} --header {{secret}}", 2, "expected 'NAME: VALUE'"),
    "header with a bad name": (f"{URL} --header 'a b: {{secret}}'", 2, "expected 'NAME: VALUE'"),
    "header without value": (f"{URL} --header 'A:'", 2, "expected 'NAME: VALUE'"),
    "header of two lines": (f"{URL} --header 'A: {{secret}}\nB: c'", 2, "no HTTP header can"),
    "URL and a load that cannot be": (f"{URL} --concurrency 0", 2, "--concurrency 0"),
    "URL and no such prompts": (f"{URL} --prompts poems", 2, "poems"),
    # several targets
    "target twice": (f"{LOCAL} --target {{m}}", 2, "given twice"),
    "no target can be read": (
        f"--target {{t}}/none --target {{t}}/empty --drafter ngram {SMALL}",
        2,
        "config.json",
    ),
    "several targets and a flag": (f"{LOCAL} --target {{o}} --gamma many", 2, "--gamma many"),
    "several targets and no program": (f"{LOCAL} --target {{o}}", 3, "no such program"),
}
SECRET = "sk-0123456789"


@pytest.fixture(scope="module")
def folder(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the cases name."""
    root = tmp_path_factory.mktemp("bad-launching")
    (root / "empty").mkdir()
    for name in ("other", "a:b"):
        shutil.copytree(tiny_models.qwen3, root / name)
    return root


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_without_secrets(
    name: str,
    folder: Path,
    tiny_models: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args, code, words = CASES[name]
    named = {"t": folder, "m": tiny_models.qwen3, "o": folder / "other", "port": free_port()}
    args = args.format(**named, secret=SECRET)
    given = shlex.split(f"--db sqlite:///{tmp_path}/a.db --out {tmp_path}/out {args}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(folder))  # whatever docker this machine has
    said = refused(monkeypatch, capsys, ["spec", *given], code, words)
    assert SECRET not in said
    assert not list(tmp_path.rglob("*.log"))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in written
    assert name != "no docker" or not written, "no run of a study is recorded as failed"
