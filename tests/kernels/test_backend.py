"""Which backend runs a layer: our rules against vLLM's own oracles, as on each GPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autotune.core import BadInputError
from autotune.engine.quantization import WHOLE, Weights
from autotune.kernels.moe.backend import Where, activation_of, backend_of
from tests.support.installed_vllm import InstalledVllm

SCHEMES: dict[str, tuple[Weights, tuple[int, int] | None]] = {
    "bf16": (WHOLE, None),
    "fp8 tensor": (Weights("fp8_w8a8", "tensor"), None),
    "fp8 tensor static": (Weights("fp8_w8a8", "tensor", static=True), None),
    "fp8 channel": (Weights("fp8_w8a8", "channel"), None),
    "fp8 tensor compressed": (Weights("fp8_w8a8", "tensor", method="compressed-tensors"), None),
    "fp8 channel quark": (Weights("fp8_w8a8", "channel", method="quark"), None),
    "fp8 block": (Weights("fp8_w8a8", "block", (128, 128)), (128, 128)),
    "fp8 block 64": (Weights("fp8_w8a8", "block", (128, 128)), (64, 64)),
    "int8": (Weights("int8_w8a8", "channel"), None),
    "int4": (Weights("int4_w4a16", "group"), None),
    "nvfp4": (Weights("nvfp4", "group"), None),
    "nvfp4 alone": (Weights("nvfp4_w4a16", "group"), None),
    "mxfp8": (Weights("mxfp8", "group"), None),
    "mxfp4": (Weights("mxfp4", "group"), None),
}
ACTIVATIONS = ("silu", "gelu_tanh", "relu2_no_mul", "swigluoai")
GPUS = {"H100, H200": (9, 0), "B200": (10, 0), "RTX PRO 6000": (12, 0), "GB10": (12, 1)}


def asked_of_vllm(
    vllm: InstalledVllm,
    capability: tuple[int, int],
    *,
    flashinfer: bool,
    deep_gemm: bool,
    questions: Any,
) -> list[str]:
    done = subprocess.run(
        [*vllm.bare, str(Path(__file__).with_name("vllm_selection.py"))],
        input=json.dumps(
            {
                "capability": capability,
                "flashinfer": flashinfer,
                "deep_gemm": deep_gemm,
                "questions": questions,
            }
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
    assert lines, done.stderr[-2000:]
    answers: list[str] = json.loads(lines[0].removeprefix("ANSWERS"))
    return answers


PACKAGES = ((True, False), (True, True), (False, False))
WITH = [(gpu, *packages) for gpu in GPUS for packages in PACKAGES]
USUAL = [("GB10", True, False), ("H100, H200", True, True)]


@pytest.mark.server
@pytest.mark.parametrize(
    ("gpu", "flashinfer", "deep_gemm"),
    [pytest.param(*w, marks=() if w in USUAL else pytest.mark.nightly) for w in WITH],
)
def test_the_rules_say_what_vllm_says(
    gpu: str, flashinfer: bool, deep_gemm: bool, installed_vllm: InstalledVllm
) -> None:
    questions: list[tuple[str, int, str, int]] = [
        (scheme, ep, activation, 768)
        for scheme in SCHEMES
        for ep in (1, 2)
        for activation in ACTIVATIONS
    ]
    major, minor = GPUS[gpu]
    answers = asked_of_vllm(
        installed_vllm,
        (major, minor),
        flashinfer=flashinfer,
        deep_gemm=deep_gemm,
        questions=questions,
    )
    wrong = []
    for (scheme, ep, activation, _), theirs in zip(questions, answers, strict=True):
        where = Where(
            10 * major + minor,
            ep=ep,
            activation=activation,
            flashinfer=flashinfer,
            deep_gemm=deep_gemm,
        )
        weights, block = SCHEMES[scheme]
        ours = backend_of(weights, block, where)
        if scheme == "mxfp4":
            assert not ours.reads
            continue  # many variants of one library; none reads a file
        name = theirs.upper().replace(" ", "_")
        if ours.name != name:
            wrong.append((scheme, ep, activation, ours.name, theirs))
    assert not wrong


@pytest.mark.parametrize(
    ("scheme", "arch", "reads"),
    [
        ("fp8 channel", 121, True),
        ("fp8 channel", 90, False),
        ("fp8 block", 90, True),
        ("fp8 block 64", 121, True),
        ("bf16", 121, False),
        ("bf16", 90, True),
        ("int4", 121, False),
        ("nvfp4", 121, False),
        ("fp8 channel", 86, False),
    ],
)
def test_a_dead_file_is_known(scheme: str, arch: int, reads: bool) -> None:
    weights, block = SCHEMES[scheme]
    assert backend_of(weights, block, Where(arch)).reads is reads


def test_a_forced_backend() -> None:
    assert backend_of(WHOLE, None, Where(121, forced="triton")).reads
    assert not backend_of(Weights("nvfp4", "group"), None, Where(121, forced="triton")).reads
    with pytest.raises(BadInputError, match="--moe-backend cuda: not one of auto, triton"):
        backend_of(WHOLE, None, Where(121, forced="cuda"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"hidden_act": "silu"}, "silu"),
        ({"hidden_activation": "gelu_pytorch_tanh"}, "gelu_tanh"),
        ({"model_type": "gemma4"}, "gelu_tanh"),
        ({"model_type": "gpt_oss"}, "swigluoai"),
        ({"model_type": "nemotron_h", "mlp_hidden_act": "relu2"}, "relu2_no_mul"),
    ],
)
def test_the_activation(config: dict[str, Any], expected: str) -> None:
    assert activation_of(config) == expected
