"""Tiny models with random weights, as folders that a real vLLM server loads.

Qwen3 and Gemma 4, dense and MoE, with one small tokenizer and chat template; Gemma 4's assistant,
which drafts with method ``mtp``; and noisy copies of a target, which draft for it as
``draft_model``: the more noise, the fewer tokens are accepted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 384
HIDDEN = 64
CONTEXT = 2048
_CORPUS = (
    "The quick brown fox jumps over the lazy dog, and then it rests in the shade of the old tree.",
    "A server answers many requests at once; every request asks for the next word, and the next.",
    "def total(values): return sum(value for value in values if value is not None)",
    '{"name": "river", "length": 1230, "countries": ["France", "Germany", "Switzerland"]}',
    "When the morning came, nobody remembered what the argument of the evening had been about.",
    "1. Read the question twice. 2. Write the answer once. 3. Check it against the question.",
)
_GEMMA: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 32,
    "global_head_dim": 64,
    "attention_k_eq_v": True,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "sliding_window": 128,
    "layer_types": [
        "sliding_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ],
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "initializer_range": 0.1,
}
_QWEN: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def make_tokenizer(folder: Path, *, chat: bool = True) -> None:
    """A byte-level BPE of 384 tokens, always the same; with a chat template if ``chat``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), SPECIAL, strict=False))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **names,
        chat_template=CHAT_TEMPLATE if chat else None,
        model_max_length=CONTEXT,
    ).save_pretrained(folder)


def _save(model: Any, folder: Path, *, chat: bool) -> Path:
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer(folder, chat=chat)
    (folder / "generation_config.json").write_text(json.dumps(_IDS))
    return folder


def make_qwen3(folder: Path, *, seed: int = 0, chat: bool = True, **changes: Any) -> Path:
    """A dense Qwen3; ``changes`` to its configuration."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return _save(Qwen3ForCausalLM(Qwen3Config(**(_QWEN | _IDS | changes))), folder, chat=chat)


def make_qwen3_moe(folder: Path, *, seed: int = 0, chat: bool = True) -> Path:
    """A Qwen3 with 8 experts of which each token uses 2."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    return _save(Qwen3MoeForCausalLM(Qwen3MoeConfig(**_QWEN, **_IDS, **experts)), folder, chat=chat)


def make_gemma4(folder: Path, *, moe: bool = False, seed: int = 0, chat: bool = True) -> Path:
    """A Gemma 4, its text part alone: three sliding layers and a full one."""
    import torch
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    torch.manual_seed(seed)
    experts: dict[str, Any] = {"enable_moe_block": False}
    if moe:
        experts = {
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
        }
    config = Gemma4TextConfig(**_GEMMA, **_IDS, **experts)
    return _save(Gemma4ForCausalLM(config), folder, chat=chat)


def make_gemma4_assistant(folder: Path, *, backbone: int = HIDDEN, seed: int = 0) -> Path:
    """The drafter of a Gemma 4 of hidden size ``backbone``: two layers without keys and values."""
    import torch
    from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM

    torch.manual_seed(seed)
    text = _GEMMA | {
        "model_type": "gemma4_text",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = Gemma4AssistantConfig(text_config=text, backbone_hidden_size=backbone, **_IDS)
    return _save(Gemma4AssistantForCausalLM(config), folder, chat=True)


def make_noisy_copy(target: Path, folder: Path, *, noise: float, seed: int = 0) -> Path:
    """A copy of ``target`` whose matrices have Gaussian noise added.

    Args:
        target: the folder of a model.
        folder: where the copy goes.
        noise: standard deviation of the noise, as a share of that of each matrix's own values.
        seed: of the noise.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(target, folder)
    torch.manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        if values.ndim >= 2:
            scale = noise * values.float().std()
            weights[name] = (values.float() + scale * torch.randn(values.shape)).to(values.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def digest() -> str:
    """What the models follow from: this file and the libraries that write them."""
    made_by = [Path(__file__).read_bytes()]
    made_by += [metadata.version(name).encode() for name in ("torch", "transformers", "tokenizers")]
    return hashlib.sha256(b"\0".join(made_by)).hexdigest()[:16]


class TinyModels:
    """Makes each model when it is first asked for, under one folder.

    Several processes may share the folder: a model is made by one of them, and is there whole.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root

    def make(self, name: str) -> Path:
        return self._made(name, _MAKERS[name])

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        folder = self.root / name
        if not folder.exists():
            with FileLock(self.root / "lock"), tempfile.TemporaryDirectory(dir=self.root) as place:
                if not folder.exists():
                    make(Path(place) / name)
                    (Path(place) / name).rename(folder)
        return folder

    @property
    def qwen3(self) -> Path:
        """Dense; a target."""
        return self.make("qwen3")

    @property
    def qwen3_moe(self) -> Path:
        """With experts; a target."""
        return self.make("qwen3-moe")

    @property
    def gemma4(self) -> Path:
        """Dense, sliding and full attention; a target."""
        return self.make("gemma4")

    @property
    def gemma4_moe(self) -> Path:
        """With experts; a target."""
        return self.make("gemma4-moe")

    @property
    def gemma4_assistant(self) -> Path:
        """Drafts for both Gemma 4 by method ``mtp``."""
        return self.make("gemma4-assistant")

    def noisy(self, target: Path, noise: float) -> Path:
        """A drafter for ``target``, made once for each level of noise."""
        return self._made(
            f"{target.name}-noise-{noise:g}",
            lambda folder: make_noisy_copy(target, folder, noise=noise),
        )


_MAKERS: dict[str, Callable[[Path], Path]] = {
    "qwen3": make_qwen3,
    "qwen3-moe": make_qwen3_moe,
    "gemma4": make_gemma4,
    "gemma4-moe": functools.partial(make_gemma4, moe=True),
    "gemma4-assistant": make_gemma4_assistant,
}


@pytest.fixture(scope="session")
def tiny_models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TinyModels:
    """The tiny models: in pytest's cache, from one run to the next; without one, of this run."""
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    if cache is None:
        return TinyModels(tmp_path_factory.getbasetemp().parent / "tiny-models")
    return TinyModels(cache.mkdir(f"tiny-models-{digest()}"))


def make_deep_pair(root: Path, *, layers: int = 16, noise: float = 0.02) -> tuple[Path, Path]:
    """A Qwen3 of many layers and a drafter of its first two, cheap and nearly right.

    All layers of the target but two add next to nothing to what passes through them, so that it
    says what its first two layers say.

    Args:
        root: where both folders go.
        layers: of the target.
        noise: of the drafter; see :func:`make_noisy_copy`.

    Returns:
        Target and drafter.
    """
    from safetensors.torch import load_file, save_file

    target, shallow = make_qwen3(root / "deep", num_hidden_layers=layers), root / "shallow"
    weights = load_file(target / "model.safetensors")
    for name in weights:
        late = name.startswith("model.layers.") and int(name.split(".")[2]) >= 2
        if late and name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] *= 1e-3
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(target, shallow)
    kept = {
        name: values
        for name, values in weights.items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < 2
    }
    save_file(kept, shallow / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((shallow / "config.json").read_text())
    config["num_hidden_layers"] = 2
    config.pop("layer_types", None)
    (shallow / "config.json").write_text(json.dumps(config))
    return target, make_noisy_copy(shallow, root / "deep-drafter", noise=noise)
