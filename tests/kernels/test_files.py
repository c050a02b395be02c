"""`autotune files`: every tuned file by name, who reads it, where it lies, what makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from autotune.core import BadInputError
from autotune.kernels.files import Service, TunedFile, files_for
from autotune.machine.devices import get_device
from tests.kernels.test_cases import BLOCK, FP8, PUZZLE, QWEN, SIZES, compressed, quantised


def served(
    place: Path, config: dict[str, Any], device: str = "gb10", **more: Any
) -> list[TunedFile]:
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    return files_for(Service(str(place), get_device(device), **more))


def test_each_group_of_layers_has_its_file_and_its_reader(tmp_path: Path) -> None:
    listed = [f"mtp.layers.0.mlp.experts.{i}.up_proj" for i in range(8)]
    config = quantised(QWEN, **compressed(listed))
    main, mtp = served(tmp_path, config)
    assert main.name == "E=8,N=128,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
    assert (main.backend, main.reads, main.found) == ("TRITON", True, None)
    assert main.command == f"autotune moe --device gb10 --model {tmp_path} --layer 0"
    assert mtp.name == "E=8,N=128,device_name=NVIDIA_GB10.json"
    assert (mtp.backend, mtp.reads) == ("FLASHINFER_CUTLASS", False)
    assert served(tmp_path, config, flashinfer=False)[1].reads


@pytest.mark.parametrize(
    ("config", "device", "more", "expected"),
    [
        (quantised(SIZES, **compressed()), "h200", {}, ("VLLM_CUTLASS", False)),
        (quantised(SIZES, **compressed()), "h200", {"moe_backend": "triton"}, ("TRITON", True)),
        (quantised(SIZES, quant_method="awq", bits=4), "gb10", {}, ("MARLIN", False)),
        (quantised(SIZES, **FP8), "h100", {}, ("TRITON", True)),
        (SIZES, "h100", {}, ("TRITON", True)),
        (SIZES, "gb10", {}, ("FLASHINFER_CUTLASS", False)),
        (SIZES, "gb10", {"lora": True}, ("TRITON", True)),
    ],
)
def test_the_reader(
    config: dict[str, Any],
    device: str,
    more: dict[str, Any],
    expected: tuple[str, bool],
    tmp_path: Path,
) -> None:
    first = served(tmp_path, config, device, **more)[0]
    assert (first.backend, first.reads) == expected


def test_four_bit_floats_have_no_file(tmp_path: Path) -> None:
    (only,) = served(tmp_path, quantised(SIZES, quant_method="mxfp4"))
    assert (only.name, only.reads, only.command) == (None, False, None)


def test_int4_names_the_file_of_the_other_kernel(tmp_path: Path) -> None:
    (only,) = served(tmp_path, quantised(SIZES, quant_method="auto-round", bits=4), tp=2)
    assert only.name == "E=8,N=64,device_name=NVIDIA_GB10,dtype=int4_w4a16.json"
    assert only.command is None


def test_the_users_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "E=8,N=128,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / name).write_text(json.dumps({"triton_version": "3.8.0", "1": {}}))
    monkeypatch.setenv("VLLM_TUNED_CONFIG_FOLDER", str(folder))
    (only,) = served(tmp_path / "m", quantised(SIZES, **FP8))
    assert (only.found, only.triton, only.command) == (str(folder / name), "3.8.0", None)


def test_a_file_that_vllm_ships_is_found(tmp_path: Path) -> None:
    sizes = SIZES | {"num_experts": 512, "moe_intermediate_size": 512, "num_experts_per_tok": 10}
    (only,) = served(tmp_path, quantised(sizes, **BLOCK))
    assert only.found is not None
    assert only.triton == "3.5.0"


DENSE = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
}


def test_dense_layers_of_block_fp8(tmp_path: Path) -> None:
    names = [f.name for f in served(tmp_path, quantised(DENSE, **BLOCK), tp=2)]
    tail = "device_name=NVIDIA_GB10,dtype=fp8_w8a8,block_shape=[128,128].json"
    sizes = ("N=256,K=256", "N=256,K=128", "N=512,K=256")
    assert set(names) == {f"{size},{tail}" for size in sizes}
    assert served(tmp_path, quantised(DENSE, **FP8)) == []
    assert served(tmp_path, DENSE) == []


def test_mamba_lora_and_drafter(tmp_path: Path) -> None:
    mamba = PUZZLE | {"mamba_head_dim": 64, "ssm_state_size": 128}
    last = served(tmp_path, mamba | {"mamba_ssm_cache_dtype": "float32"})[-1]
    assert last.name == "headdim=64,dstate=128,device_name=NVIDIA_GB10,cache_dtype=float32.json"
    assert last.reads
    assert served(tmp_path, DENSE, lora=True)[0].name == "NVIDIA_GB10_SHRINK.json"
    other = tmp_path / "drafter"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(SIZES))
    (drafter,) = served(tmp_path, DENSE, drafter=str(other))
    assert drafter.where.startswith("drafter: routed experts")


def test_bad_values_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--tp 3 does not divide"):
        served(tmp_path, SIZES, tp=3)
    with pytest.raises(BadInputError, match="--moe-backend fast"):
        served(tmp_path, SIZES, moe_backend="fast")


def test_the_command_prints_text_and_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(quantised(SIZES, **FP8)))
    args = ["files", str(tmp_path), "--device", "gb10"]
    shown = CliRunner().invoke(app, args)
    assert shown.exit_code == 0, shown.output
    assert "TRITON reads it" in shown.output
    document = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
    assert document["device"] == "gb10"
    assert document["files"][0]["reads"] is True
