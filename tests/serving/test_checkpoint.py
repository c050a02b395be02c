"""Reading a model's small files from the hub: what is absent, and what could not be looked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.serving.pair.checkpoint import Checkpoint, load_checkpoint
from tests.serving.tiny_models import TinyModels


def hub(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, absent: Exception, size: int = 10
) -> None:
    """A hub whose models all lie in ``folder``, with files of so many bytes."""

    def download(ref: str, name: str, **_: object) -> str:
        if (folder / name).is_file():
            return str(folder / name)
        raise absent

    about = SimpleNamespace(size=size)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _: about)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_a_file_of_gigabytes_is_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, tiny_models: TinyModels
) -> None:
    hub(monkeypatch, tiny_models.qwen3, absent=EntryNotFoundError("none"), size=1 << 32)
    with pytest.raises(BadInputError, match=r"config\.json has 4294967296 bytes"):
        load_checkpoint("org/qwen")


def test_a_hub_model_is_read_as_a_folder_is(
    monkeypatch: pytest.MonkeyPatch, tiny_models: TinyModels
) -> None:
    hub(monkeypatch, tiny_models.qwen3, absent=EntryNotFoundError("none"))
    found, local = load_checkpoint("org/qwen"), load_checkpoint(str(tiny_models.qwen3))
    assert (found.name, found.chat, found.from_hub) == ("qwen", True, True)
    assert (found.config, found.tokenizer, found.eos) == (local.config, local.tokenizer, local.eos)


@pytest.mark.parametrize(
    ("absent", "chat"),
    [(EntryNotFoundError("none"), False), (LocalEntryNotFoundError("offline"), None)],
)
def test_a_template_that_was_not_looked_for_is_not_missing(
    absent: Exception,
    chat: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    tiny_models: TinyModels,
    tmp_path: Path,
) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny_models.qwen3 / name).read_text())
    hub(monkeypatch, tmp_path, absent=absent)
    assert load_checkpoint("org/qwen").chat is chat


@pytest.mark.parametrize(
    ("absent", "kind"),
    [
        (EntryNotFoundError("none"), BadInputError),
        (HFValidationError("bad"), BadInputError),
        (LocalEntryNotFoundError("offline"), MissingEnvironmentError),
        (ConnectionError("down"), MissingEnvironmentError),
    ],
)
def test_a_hub_without_the_model(
    absent: Exception,
    kind: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    hub(monkeypatch, tmp_path, absent=absent)
    with pytest.raises(kind, match="--drafter org/qwen"):
        load_checkpoint("org/qwen", "--drafter")


def test_the_size_of_the_weights(
    monkeypatch: pytest.MonkeyPatch, tiny_models: TinyModels, tmp_path: Path
) -> None:
    size = (tiny_models.qwen3 / "model.safetensors").stat().st_size
    assert load_checkpoint(str(tiny_models.qwen3)).weight_bytes == size
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 123}}')
    hub(monkeypatch, tmp_path, absent=EntryNotFoundError("none"))
    assert load_checkpoint("org/qwen").weight_bytes == 123
    assert load_checkpoint(str(tmp_path)).weight_bytes == 123


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_experts": 8}, 8),
        ({"num_local_experts": 4}, 4),
        ({"n_routed_experts": 256, "n_shared_experts": 1}, 256),
        ({"num_experts": 0}, None),
        ({"text_config": {"num_experts": 2}}, 2),
        ({}, None),
    ],
)
def test_the_number_of_experts(config: dict[str, Any], expected: int | None) -> None:
    assert Checkpoint("m", config).experts == expected
