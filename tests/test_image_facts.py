"""What an image holds, and which images are refused; no engine needed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from autotune.cli.try_it import serve_line
from autotune.core import MissingEnvironmentError
from autotune.machine import image_facts
from autotune.machine.containers import Engine, Image, find_engine, find_image
from autotune.machine.environment import Outside
from autotune.machine.image_facts import TAKE, ImageFacts, too_old

NEW = ImageFacts(
    python=(3, 12, 3),
    executable="/usr/bin/python3",
    packages={"vllm": "0.33.0", "triton": "3.8.0", "numpy": "2.2.6", "pydantic": "2.12.0"},
    cuda="13.0",
    has_vllm=True,
    has_pip=True,
)


def like(cuda: str | None = "13.0", *, has_vllm: bool = True, **packages: str) -> ImageFacts:
    merged = {**NEW.packages, **{name.replace("_", "-"): v for name, v in packages.items()}}
    return dataclasses.replace(NEW, packages=merged, cuda=cuda, has_vllm=has_vllm)


@pytest.mark.parametrize(
    ("facts", "capability", "words"),
    [
        (like(), "12.1", None),
        (like(vllm="0.24.0", triton="3.6.0", cuda="12.8"), "9.0", None),
        (like(vllm="0.24.0", triton="3.6.0", cuda="12.8"), None, None),
        (like(vllm="0.19.1+nv26.05"), "12.1", "vLLM 0.19.1+nv26.05 is too old, 0.24"),
        (like(has_vllm=False), None, "has no vLLM"),
        (like(triton="3.7.1"), "12.1", "Triton 3.7.1 has no fp8 tensor cores"),
        (like(triton="3.7.1"), "12.0", None),
        (like(cuda="12.8"), "12.1", "CUDA 12.8 does not know this GPU before 12.9"),
        (like(cuda="12.6"), "12.0", "CUDA 12.6 does not know this GPU before 12.8"),
        (like(cuda=None), "12.1", None),
    ],
)
def test_what_is_too_old_names_the_image_to_take(
    facts: ImageFacts, capability: str | None, words: str | None
) -> None:
    found = too_old(facts, "img", capability, fp8=True)
    assert [words in finding.message for finding in found if words] == [True] * bool(words)
    assert all(finding.refuses and f"take {TAKE}" in finding.message for finding in found)


def test_an_old_triton_does_for_what_is_not_fp8() -> None:
    assert too_old(like(triton="3.7.1"), "img", "12.1", fp8=False) == []


def test_nvidias_name_for_triton_counts() -> None:
    packages = {"vllm": "0.33.0", "pytorch-triton": "3.5.0+git1b0418a9"}
    (found,) = too_old(dataclasses.replace(NEW, packages=packages), "img", "12.1", fp8=True)
    assert "Triton 3.5.0+git1b0418a9" in found.message


def test_what_lacks_is_added_and_what_is_old_is_told() -> None:
    lacking = like().lacking()
    assert any(text.startswith("optuna>=") for text in lacking)
    assert not any(text.startswith(("numpy", "pydantic")) for text in lacking)
    assert like().outdated() == []
    (old,) = like(pydantic="2.4.0").outdated()
    assert old.startswith("pydantic 2.4.0 (needed: >=")
    assert like(pydantic="of our own").outdated() == [], "what is no version is not judged"


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


WORKS = """case "$1" in
version) echo 28.0;;
--version) echo "%s";;
info) echo '%s';;
esac"""


def test_podman_is_taken_where_docker_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingEnvironmentError, match="docker: no such program"):
        find_engine()
    program(tmp_path, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(MissingEnvironmentError, match="docker does not work here: Cannot connect"):
        find_engine()
    program(tmp_path, "podman", WORKS % ("podman version 5.4.0", "true"))
    assert find_engine() == Engine("podman", is_podman=True, is_rootless=True)
    program(tmp_path, "docker", WORKS % ("Docker version 28.0", '["name=seccomp"]'))
    assert find_engine() == Engine("docker")
    program(tmp_path, "docker", WORKS % ("Docker version 28.0", '["name=rootless"]'))
    assert find_engine() == Engine("docker", is_rootless=True)
    program(tmp_path, "docker", WORKS % ("podman version 4.3.1", "false"))
    assert find_engine() == Engine("docker", is_podman=True)


def test_files_are_the_users_and_gpus_have_podmans_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 100)
    assert Engine().user_options() == ["--user", "1000:100"]
    assert Engine(is_rootless=True).user_options() == ["--user", "0:0"]
    podman = Engine("podman", is_podman=True)
    for gpus, docker, cdi in (
        ("none", [], []),
        ("all", ["--gpus", "all"], ["--device=nvidia.com/gpu=all"]),
        ("2", ["--gpus", "2"], ["--device=nvidia.com/gpu=0", "--device=nvidia.com/gpu=1"]),
        ('"device=0,GPU-a",capabilities=utility', None, None),
    ):
        if docker is not None:
            assert Engine().gpu_options(gpus) == docker
            assert podman.gpu_options(gpus) == cdi
        else:
            named = ["--device=nvidia.com/gpu=0", "--device=nvidia.com/gpu=GPU-a"]
            assert podman.gpu_options(gpus) == named


@pytest.mark.parametrize(
    "answer", ["{", "[]x", "[1]", "[{}]", '[{"Id": 1}]', '[{"Id": "a"}, {"Id": "b"}]', "null"]
)
def test_an_answer_that_is_no_image_is_one_line(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "docker", f"echo '{answer}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MissingEnvironmentError, match="an answer that cannot be read"):
        find_image(Engine(), "img")


@pytest.mark.parametrize(
    ("name", "pulled"),
    [
        ("vllm/vllm-openai:v0.33.0", "docker.io/vllm/vllm-openai:v0.33.0"),
        ("ubuntu", "docker.io/library/ubuntu"),
        ("nvcr.io/nvidia/vllm:26.01", "nvcr.io/nvidia/vllm:26.01"),
        ("localhost/mine:1", "localhost/mine:1"),
        ("host:5000/mine", "host:5000/mine"),
    ],
)
def test_podman_pulls_what_docker_would(
    name: str, pulled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.machine.containers._answer", lambda _: "")
    for engine, first in ((Engine("podman", is_podman=True), pulled), (Engine(), name)):
        with pytest.raises(MissingEnvironmentError, match=f"{engine.program} pull {first}` first"):
            find_image(engine, name, pull=False)


def test_a_dry_run_pulls_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "docker", f'echo "$1" >> {tmp_path}/asked; test "$1" = image && exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MissingEnvironmentError, match="downloads nothing: `docker pull img` first"):
        find_image(Engine(), "img", pull=False)
    assert (tmp_path / "asked").read_text() == "image\n"


def test_an_image_as_docker_tells_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"User": "", "Env": ["PATH=/bin", "HF_HOME=/a=b"]}
    told = json.dumps([{"Id": "sha256:" + "ab" * 32, "Config": config}])
    program(tmp_path, "docker", f"echo '{told}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    image = find_image(Engine(), "img")
    assert (image.id, image.short_id, image.home) == ("ab" * 32, "ab" * 6, "/root")
    assert image.env["HF_HOME"] == "/a=b"
    assert Image("i", "a", user="1000").home is None
    assert Image("i", "a", user="nim:nim", env={"HOME": "/opt/nim"}).home == "/opt/nim"


@pytest.mark.parametrize("said", ["{}", '{"python": "3"}', "[]", "{", "NaN"])
def test_a_python_that_answers_nonsense_is_one_line(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "docker", f"echo 'autotune-image {said}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MissingEnvironmentError, match="its Python answers nonsense"):
        image_facts.image_facts(Engine(), Image("img", said))


def test_try_it_fits_where_the_command_ran() -> None:
    here = Path("outputs/s/measured")
    plain = "VLLM_TUNED_CONFIG_FOLDER=outputs/s/measured vllm serve …"
    assert serve_line(here, None, None) == plain
    first, second = serve_line(here, None, "docker").splitlines()
    assert first == plain
    assert "docker run --rm --gpus all" in second
    assert "--volume FOLDER:/moe:ro" in second
    gpus = ["--device=nvidia.com/gpu=all"]
    started = Outside("autotune moe", "podman", "img:1", "ab", gpu_options=gpus)
    assert serve_line(here, started, "podman") == (
        "podman run --rm --device=nvidia.com/gpu=all --ipc host --publish 127.0.0.1:8000:8000 "
        f"--volume {here.absolute()}:/moe:ro --env VLLM_TUNED_CONFIG_FOLDER=/moe "
        "--entrypoint vllm img:1 serve …"
    )
