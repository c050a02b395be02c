"""vLLM's own look-up picks the exported file up, and its log line is the one that is promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.export.checkout import Checkout
from autotune.kernels.export.publish import VllmOptions, to_vllm
from autotune.kernels.export.targets import write_target
from autotune.kernels.stored import Tuned, load
from autotune.store.store import Store
from tests.kernels.kept_study import FILE, KEPT, PERSON, STUDY, checkout, database
from tests.support.installed_vllm import InstalledVllm

pytestmark = pytest.mark.server

# Only the name of the GPU is ours; this machine has none.
SCRIPT = """
import json
from vllm.config.logging import LoggingConfig
from vllm.logger import configure_logging
configure_logging(LoggingConfig())  # as a server does
from vllm.model_executor.layers.fused_moe import fused_moe
fused_moe.get_device_name_as_file_name = lambda: "NVIDIA_H200"
found = fused_moe.get_moe_configs(128, 704, "fp8_w8a8")
print("ROWS", json.dumps(found))
"""


@pytest.fixture
def tuned(tmp_path: Path) -> Tuned:
    with Store.open(database(tmp_path), create=False) as store:
        return load(store, STUDY, 0.01)


def vllm_says(vllm: InstalledVllm, folder: Path) -> str:
    return vllm.run(SCRIPT, VLLM_TUNED_CONFIG_FOLDER=str(folder))


def test_vllm_picks_the_file_up(
    tuned: Tuned, installed_vllm: InstalledVllm, tmp_path: Path
) -> None:
    done = write_target("folder", tuned, tmp_path / "folder")
    said = vllm_says(installed_vllm, tmp_path / "folder")
    (line,) = [line for line in said.splitlines() if "Using configuration from" in line]
    # What the export promised, word for word.
    assert done.say[1].removeprefix("it is picked up when vLLM logs: ") in line
    (rows,) = [line for line in said.splitlines() if line.startswith("ROWS")]
    kept = json.loads((KEPT / FILE).read_text())
    del kept["triton_version"]
    assert json.loads(rows.removeprefix("ROWS ")) == kept
    # The line goes into the text of the pull request.
    log = tmp_path / "serve.log"
    log.write_text(said)
    options = VllmOptions(dest=tmp_path / "pr", person=PERSON, serve_log=log)
    to_vllm(tuned, Checkout.open(checkout(tmp_path / "vllm"), "--repo"), options)
    text = (tmp_path / "pr/PULL_REQUEST.md").read_text()
    assert f"    Using configuration from {tmp_path}/folder/{FILE} for MoE layer." in text


def test_without_the_file_it_says_so(installed_vllm: InstalledVllm, tmp_path: Path) -> None:
    said = vllm_says(installed_vllm, tmp_path)
    assert "Using default MoE config. Performance might be sub-optimal!" in said
    assert FILE in said
    assert "ROWS null" in said
