"""Say which tuned files vLLM reads for each model of ``tests/kernels/served_models.py``, and where.

With ``--ask`` vLLM's own classes and oracles are asked again, as on each GPU, and their answers
written to ``tests/data/vllm-files.json``; a test holds our rules to them.

    python -m benchmarks.files_by_model --ask
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.kernels.files import Service, TunedFile, files_of
from autotune.machine.devices import get_device
from tests.kernels.quantised_models import VARIANTS
from tests.kernels.served_models import MODELS
from tests.kernels.vllm_models import ask

ROOT = Path(__file__).parents[1]
ANSWERS = ROOT / "tests" / "data" / "vllm-files.json"
TABLE = ROOT / "benchmarks" / "results" / "files-by-model.md"
DEVICES = ("gb10", "h100", "h200")
RANKS: dict[str, tuple[int, int]] = {"": (1, 1), " tp 2": (2, 1), " tp 2 ep 2": (2, 2)}
GPUS: dict[str, tuple[int, int]] = {"gb10": (12, 1), "h100": (9, 0)}
Layer = tuple[int, int, list[int] | None, str]
"""experts and width on a rank, block, backend."""


def situations() -> dict[str, tuple[str, int, int]]:
    """Device, tensor- and expert-parallel size of each column of answers, by its name."""
    return {
        f"{device}{word}": (device, tp, ep) for device in GPUS for word, (tp, ep) in RANKS.items()
    }


def vllm_says(
    device: str, tp: int, ep: int, python: Sequence[str] = (sys.executable,)
) -> dict[str, list[Layer] | str]:
    """The layers of each model as vLLM builds them; on one GPU of all variants too."""
    models = MODELS if tp > 1 else MODELS | VARIANTS
    questions = [
        {"files": {"config.json": config}, "tp": tp, "ep": ep > 1} for config in models.values()
    ]
    answers = ask(questions, python, capability=GPUS[device], deep_gemm=False, tp=tp)
    return dict(zip(models, map(_layers, answers), strict=True))


def _layers(answer: Mapping[str, Any]) -> list[Layer] | str:
    if "error" in answer:
        return str(answer["error"])[:200]
    found: list[Layer] = []
    for one in answer["layers"]:
        backend = str(one["backend"]).upper().replace(" ", "_")
        layer = (one["experts"], one["intermediate"], one["block"], backend)
        if layer not in found:
            found.append(layer)
    return found


def we_say(config: Mapping[str, Any], device: str, tp: int = 1, ep: int = 1) -> list[TunedFile]:
    """The files of the routed experts of the model's own layers."""
    service = Service("MODEL", get_device(device), tp=tp, ep=ep)
    return [f for f in files_of(config, service) if f.family == "moe" and "MTP" not in f.where]


def table() -> str:
    """The table for people."""
    lines = [HEAD.format(vllm=json.loads(ANSWERS.read_text())["vllm"])]
    for name, config in MODELS.items():
        cells = [name]
        for device in DEVICES:
            said = []
            for file in we_say(config, device):
                title = (file.name or "no file").replace(
                    f",device_name={get_device(device).vllm_name}", ""
                )
                said.append(f"{'**' if file.reads else ''}{title.removesuffix('.json')}"
                            f"{'**' if file.reads else ''} {file.backend}")  # fmt: skip
            cells.append("; ".join(said))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


HEAD = """# Which tuned MoE files vLLM reads, by model and device

Made by `python -m benchmarks.files_by_model` (rules of `autotune files`; FlashInfer installed,
DeepGEMM not). `tests/kernels/test_served_models.py` holds each row to what vLLM {vllm} itself
selects. Bold: the backend reads the file; else the file is dead there. Names without the device.

| model | GB10 | H100 | H200 |
|:--|:--|:--|:--|"""


def main() -> None:
    """Write the table, and with ``--ask`` the answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ask", action="store_true")
    if parser.parse_args().ask:
        answers = {name: vllm_says(*where) for name, where in situations().items()}
        import vllm  # noqa: PLC0415 - slow, and only its version is asked

        text = json.dumps({"vllm": vllm.__version__, "answers": answers}, indent=1)
        ANSWERS.write_text(text + "\n")
    TABLE.write_text(table())


if __name__ == "__main__":
    main()
