"""Launchers as the command offers them; docker is a stand-in that records its arguments."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from autotune.core import BadInputError
from autotune.serving.export.write import compose
from autotune.serving.server.launching import devices_of
from autotune.serving.server.mounts import Mount, mounts_of, parse_mount, with_full_paths
from autotune.serving.server.server import ServeSettings
from tests.serving.fake_docker import IMAGE, IMAGE_ID
from tests.serving.tiny_models import TinyModels

pytestmark = pytest.mark.timing

BINARY = Path(sys.executable).with_name("autotune")
SMALL = "--server-arg=--kv-cache-memory-bytes=268435456"
"""What is free on the machine of the test then decides nothing."""
LOAD = "--concurrency 1 --max-tokens 24 --waves 1 --repeats 6 --confirm-boots 1 --confirm in-turn"


class Docker:
    """A folder with a ``docker`` that is found first."""

    def __init__(self, root: Path, run_in: Callable[..., Any]) -> None:
        self.root, self._run_in = root, run_in
        program = root / "bin" / "docker"
        program.parent.mkdir()
        fake = Path(__file__).with_name("fake_docker.py")
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {fake} "$@"\n')
        program.chmod(0o755)
        (root / "p.jsonl").write_text("".join(f'{{"prompt": "Q {i}"}}\n' for i in range(5)))
        self.env = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "FAKE_DOCKER": str(root),
        }

    def command(self, *args: str) -> list[str]:
        given = ["--launcher", "docker", "--image", IMAGE, "--prompts", "p.jsonl", *LOAD.split()]
        return ["spec", *given, "--study", "d", SMALL, *args]

    def tune(self, *args: str) -> subprocess.CompletedProcess[str]:
        ran: subprocess.CompletedProcess[str]
        ran = self._run_in(self.root, *self.command(*args), **self.env)
        return ran

    @property
    def servers(self) -> list[list[str]]:
        return [call for call in self.calls if call[0] == "run" and "serve" in call]

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.root / "calls").read_text().splitlines()]


@pytest.fixture
def docker(tmp_path: Path, run_in: Callable[..., Any]) -> Docker:
    return Docker(tmp_path, run_in)


def values(call: list[str], flag: str) -> list[str]:
    return [call[i + 1] for i, word in enumerate(call) if word == flag]


def test_containers_are_measured_and_every_one_is_removed(
    docker: Docker, tiny_models: TinyModels
) -> None:
    target, drafter = tiny_models.qwen3, tiny_models.noisy(tiny_models.qwen3, 0.02)
    moe, patch = docker.root / "moe", docker.root / "patch.py"
    moe.mkdir()
    (moe / "E=8,N=32,device_name=X.json").write_text("{}")
    patch.write_text("")
    told = json.dumps({"boots": str(docker.root / "boots")})
    args = ["--target", os.path.relpath(target, docker.root), "--drafter", str(drafter)]
    args += ["--gamma", "0,2", "--json", "--moe-config", "moe", "--env", f"FAKE_SERVING={told}"]
    args += ["--mount", "patch.py:/vllm/patch.py:ro", "--gpus", "device=0", "--no-dial"]
    ran = docker.tune(*args, "--docker-arg", "--shm-size 8g")
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["setup"]["image"] == IMAGE
    assert document["setup"]["image_id"] == IMAGE_ID
    assert document["setup"]["vllm"] == "0.33.0"  # the image's, not ours
    assert {row["memory_bytes"] for row in document["trials"]} == {None}

    runs = docker.servers
    assert len(runs) == document["boots"] == len((docker.root / "boots").read_text().splitlines())
    names = [values(call, "--name")[0] for call in runs]
    assert len(set(names)) == len(names)
    assert [call[-1] for call in docker.calls if call[0] == "rm"] == names
    probe = runs[1]
    assert values(probe, "--entrypoint") == ["vllm"]
    assert values(probe, "--volume") == [
        "autotune-5eed5eed5eed-vllm:/root/.cache/vllm",
        "autotune-5eed5eed5eed-triton:/root/.triton/cache",
        "autotune-5eed5eed5eed-flashinfer:/root/.cache/flashinfer",
        f"{patch}:/vllm/patch.py:ro",
        f"{target}:{target}:ro",
        f"{drafter}:{drafter}:ro",
        f"{moe}:{moe}:ro",
    ]
    assert values(probe, "--gpus") == ["device=0"]
    assert values(probe, "--shm-size") == ["8g"]
    assert f"VLLM_TUNED_CONFIG_FOLDER={moe}" in values(probe, "--env")
    inner = probe[probe.index(IMAGE) + 1 :]
    assert inner[:2] == ["serve", str(target)]
    assert json.loads(values(inner, "--speculative-config")[0])["model"] == str(drafter)
    assert (docker.root / document["trials"][0]["log"]).exists()

    serve = (docker.root / "outputs/d/spec/serve.sh").read_text().splitlines()[-1]
    words = shlex.split(serve)
    assert words[:3] == ["docker", "run", "--rm"]
    served = words[words.index(IMAGE) :]
    best = next(call for call in runs if call[call.index(IMAGE) :] == served)
    assert values(words, "--volume") == values(best, "--volume")
    service = yaml.safe_load((docker.root / "outputs/d/spec/compose.yaml").read_text())
    vllm = service["services"]["vllm"]
    assert vllm["volumes"] == values(best, "--volume")[3:]
    assert vllm["entrypoint"] == ["vllm", "serve"]
    assert vllm["command"][0] == str(target)
    (device,) = vllm["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0"]


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ("all", None),
        ("2", None),
        ("none", ""),
        ("0", ""),
        ("device=1", "1"),
        ('"device=0,3"', "0,3"),
        ('"device=GPU-a1,2",capabilities=utility', "GPU-a1,2"),
    ],
)
def test_the_gpus_that_docker_gives(gpus: str, expected: str | None) -> None:
    assert devices_of(gpus) == expected


def test_compose_reserves_the_gpus_that_docker_was_given() -> None:
    settings = ServeSettings("org/name")

    def devices(gpus: str) -> list[dict[str, object]]:
        service = yaml.safe_load(compose(settings, "i", gpus=gpus))["services"]["vllm"]
        reserved = service.get("deploy", {}).get("resources", {}).get("reservations", {})
        return [{k: v for k, v in d.items() if k != "driver"} for d in reserved.get("devices", [])]

    gpu = {"capabilities": ["gpu"]}
    assert devices("all") == [{"count": "all", **gpu}]
    assert devices("2") == [{"count": 2, **gpu}]
    assert devices('"device=0,3"') == [{"device_ids": ["0", "3"], **gpu}]
    assert devices("") == []
    text = compose(settings, "i", options=("--shm-size", "8g"))
    assert '# docker run was given as well: "--shm-size" "8g"' in text


def test_kill_9_of_the_command_ends_the_container(docker: Docker, tiny_models: TinyModels) -> None:
    command = docker.command("--target", str(tiny_models.qwen3), "--drafter", "ngram")
    with subprocess.Popen(
        [str(BINARY), *command],
        cwd=docker.root,
        env={**os.environ, **docker.env},
        stderr=subprocess.DEVNULL,
    ) as tuner:
        end = time.monotonic() + 60
        while not (docker.root / "pid").exists() or not (docker.root / "pid").read_text():
            assert time.monotonic() < end
            time.sleep(0.02)
        pid = int((docker.root / "pid").read_text())
        assert psutil.pid_exists(pid)
        tuner.kill()
    end = time.monotonic() + 60
    while psutil.pid_exists(pid) or docker.calls[-1][:2] != ["rm", "--force"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_a_container_must_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "1"
    for folder in (blobs, snapshot, tmp_path / "hub"):
        folder.mkdir(parents=True)
    (blobs / "b").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/b")
    (tmp_path / "t.jinja").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    args = ("--chat-template", "./t.jinja", "--tokenizer=./hub", "--dtype", "m")
    settings = ServeSettings("m/snapshots/1", {"model": "org/name"}, extra_args=args)
    assert mounts_of(settings) == [
        Mount(snapshot, str(snapshot), read_only=True),
        Mount(blobs, str(blobs), read_only=True),
        Mount(tmp_path / "t.jinja", str(tmp_path / "t.jinja"), read_only=True),
        Mount(tmp_path / "hub", str(tmp_path / "hub"), read_only=True),
        Mount(tmp_path / "hub", "/root/.cache/huggingface/hub"),
    ]
    given = Mount(tmp_path, str(snapshot))
    assert mounts_of(settings, [given])[:2] == [given, Mount(blobs, str(blobs), read_only=True)]
    full = with_full_paths(settings)
    assert full.model == str(snapshot)
    assert full.speculative == {"model": "org/name"}
    # A folder named like a value is no path: one is known by its slash.
    where = (str(tmp_path / "t.jinja"), f"--tokenizer={tmp_path / 'hub'}")
    assert full.extra_args == ("--chat-template", *where, "--dtype", "m")


def test_a_mount_is_read_as_docker_reads_it(tmp_path: Path) -> None:
    assert parse_mount(f"{tmp_path}") == Mount(tmp_path, str(tmp_path))
    assert parse_mount(f"{tmp_path}:/x") == Mount(tmp_path, "/x")
    assert parse_mount(f"{tmp_path}:/x:ro").volume() == f"{tmp_path}:/x:ro"
    assert parse_mount(f"{tmp_path}:/x:rw").volume() == f"{tmp_path}:/x"
    for bad in ("", f"{tmp_path}:x", f"{tmp_path}:/x:/y", f"{tmp_path}/none:/x"):
        with pytest.raises(BadInputError, match="--mount"):
            parse_mount(bad)
