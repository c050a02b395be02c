"""What a model's small files say: configuration, tokenizer, chat template, model card, weights.

From a folder, or from the hub (or its cache) by id. No weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.engine.hub import (
    Config,
    HubUnreachableError,
    architecture_of,
    hub_file,
    is_hub_id,
    text_config,
)
from autotune.util import edge

_INDEX = "model.safetensors.index.json"
_MOST_HEADER = 100_000_000
_CARD_HEAD = 1 << 16
"""Characters of a model card that hold its YAML head."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class Tokenizer:
    """The token-to-id map, added tokens included, and which tokens are special."""

    ids: Mapping[str, int]
    special: frozenset[str]


@dataclass(frozen=True)
class Checkpoint:
    """A model by its small files. None where they do not tell.

    ``eos`` are the ids that end a text; ``chat`` whether a chat template came with the tokenizer;
    ``base_models`` what the model card names as ``base_model``; ``weight_bytes`` the size of the
    weight files; ``tensors`` the names of the tensors in them; ``missing`` the weight files that
    the index names and the folder lacks, where it has others.
    """

    ref: str
    config: Config
    tokenizer: Tokenizer | None = None
    eos: frozenset[int] = frozenset()
    chat: bool | None = None
    base_models: tuple[str, ...] = ()
    weight_bytes: int | None = None
    from_hub: bool = False
    tensors: frozenset[str] | None = None
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model's own name: of a hub id or a hub cache's folder without ``org/``."""
        cached = re.search(r"models--[^/]+?--([^/]+)", self.ref)
        return cached[1] if cached else Path(self.ref).name or self.ref

    @property
    def text(self) -> Config:
        """The configuration of the language model inside a multimodal one."""
        return text_config(self.config)

    @property
    def model_type(self) -> str:
        """The outermost ``model_type``, or ``?``."""
        return str(self.config.get("model_type", "?"))

    @property
    def architecture(self) -> str:
        """The first of ``architectures``, or ``?``."""
        return architecture_of(self.config) or "?"

    @property
    def quantisation(self) -> str | None:
        """The method of ``quantization_config``, if there is one."""
        raw = self.config.get("quantization_config") or self.text.get("quantization_config")
        if not isinstance(raw, dict):
            return None
        return str(raw.get("quant_method") or raw.get("quant_algo") or "unnamed")

    @property
    def experts(self) -> int | None:
        """Number of experts; None of a dense model.

        Raises:
            BadInputError: it is not a whole number.
        """
        return next((n for name in _EXPERTS if (n := self.size(name))), None)

    def size(self, name: str) -> int | None:
        """A whole number of the text configuration, else of the outer one; None if not given.

        Raises:
            BadInputError: it is not a whole number, or negative.
        """
        value = self.text.get(name)
        if value is None:
            value = self.config.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BadInputError(
                f"{self.ref}: config.json: {name}: expected a whole number, found {value!r}"
            )
        return value


class _Files(Protocol):
    """Where the small files come from."""

    unknown: set[str]
    """Files that could not be looked for."""

    def read(self, name: str) -> str | None: ...

    def weight_bytes(self) -> int | None: ...

    def tensors(self) -> frozenset[str] | None: ...

    def lacks(self, names: set[str]) -> tuple[str, ...]: ...


@dataclass
class _Folder:
    path: Path
    unknown: set[str] = field(default_factory=set)

    def read(self, name: str) -> str | None:
        path = self.path / name
        try:
            return edge.read_text(path, edge.LARGE) if path.is_file() else None
        except edge.EdgeError as error:
            raise BadInputError(f"{path}: not text of ours: {error}") from None
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read: {error.strerror}") from None

    def weight_bytes(self) -> int | None:
        for pattern in _WEIGHTS:
            sizes = [path.stat().st_size for path in self.path.glob(pattern) if path.is_file()]
            if sizes:
                return sum(sizes)
        return None

    def tensors(self) -> frozenset[str] | None:
        return _header(self.path / "model.safetensors")

    def lacks(self, names: set[str]) -> tuple[str, ...]:
        here = {path.name for path in self.path.glob("*.safetensors")}
        return tuple(sorted(names - here)) if here & names else ()


@dataclass
class _Hub:
    ref: str
    flag: str
    unknown: set[str] = field(default_factory=set)

    def read(self, name: str) -> str | None:
        try:
            path = hub_file(self.ref, name, self.flag)
            return None if path is None else edge.read_text(path, edge.LARGE)
        except (HubUnreachableError, OSError, edge.EdgeError):
            self.unknown.add(name)
        return None

    def weight_bytes(self) -> int | None:
        return None

    def tensors(self) -> frozenset[str] | None:
        return None

    def lacks(self, names: set[str]) -> tuple[str, ...]:
        del names
        return ()


def load_checkpoint(ref: str, flag: str = "--target") -> Checkpoint:
    """Read the small files of a model.

    Args:
        ref: a folder, or a hub id ``org/name``.
        flag: where ``ref`` was given, for messages.

    Raises:
        BadInputError: not found, or a file that cannot be understood.
        MissingEnvironmentError: a hub id, and neither the hub nor its cache has ``config.json``.
    """
    folder = Path(ref)
    files: _Files
    if folder.is_dir():
        files = _Folder(folder)
    elif is_hub_id(ref):
        files = _Hub(ref, flag)
    else:
        raise BadInputError(f"{flag} {ref}: no such folder, and not a hub id org/name")
    config = _json(files, ref, "config.json")
    if config is None:
        if "config.json" in files.unknown:
            raise MissingEnvironmentError(
                f"{flag} {ref}: the hub cannot be reached and its cache has no config.json; "
                "download the model and give its folder"
            )
        raise BadInputError(f"{flag} {ref}: there is no config.json")
    tokenizer = _tokenizer(files, ref)
    settings = _json(files, ref, "tokenizer_config.json") or {}
    index = _json(files, ref, _INDEX) or {}
    names = index.get("weight_map")
    names = names if isinstance(names, dict) and names else {}
    return Checkpoint(
        ref=ref,
        config=config,
        tokenizer=tokenizer,
        eos=_eos(config, _json(files, ref, "generation_config.json") or {}),
        chat=_chat(files, settings, has_tokenizer=tokenizer is not None or bool(settings)),
        base_models=_base_models(files.read("README.md") or "") + _verifier(config),
        weight_bytes=_weight_bytes(files, index),
        from_hub=isinstance(files, _Hub),
        tensors=frozenset(names) or files.tensors(),
        missing=files.lacks({name for name in names.values() if isinstance(name, str)}),
    )


def _json(files: _Files, ref: str, name: str) -> dict[str, Any] | None:
    text = files.read(name)
    if text is None:
        return None
    try:
        value = edge.parse_json(text)
    except edge.EdgeError as error:
        raise BadInputError(f"{ref}: {name}: {error}") from None
    if not isinstance(value, dict):
        raise BadInputError(f"{ref}: {name}: expected an object, found {type(value).__name__}")
    return value


def _tokenizer(files: _Files, ref: str) -> Tokenizer | None:
    raw = _json(files, ref, "tokenizer.json")
    if raw is None:
        return None
    try:
        vocabulary = raw["model"]["vocab"]
        ids = (
            dict(vocabulary)
            if isinstance(vocabulary, dict)
            else {token: number for number, (token, _) in enumerate(vocabulary)}
        )
        added = raw.get("added_tokens") or []
        ids.update((token["content"], token["id"]) for token in added)
        special = frozenset(token["content"] for token in added if token.get("special"))
    except (KeyError, TypeError, ValueError):
        raise BadInputError(f"{ref}: tokenizer.json: no vocabulary as tokenizers writes") from None
    return Tokenizer(ids, special)


def _eos(config: Config, generation: Config) -> frozenset[int]:
    value = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = value if isinstance(value, list) else [value]
    return frozenset(i for i in ids if isinstance(i, int))


def _chat(files: _Files, settings: Config, *, has_tokenizer: bool) -> bool | None:
    """Where transformers looks: tokenizer_config.json, chat_template.jinja, chat_template.json."""
    if settings.get("chat_template"):
        return True
    names = ("chat_template.jinja", "chat_template.json")
    if any(files.read(name) for name in names):
        return True
    unsure = files.unknown & {*names, "tokenizer_config.json"}
    return False if has_tokenizer and not unsure else None


def _base_models(card: str) -> tuple[str, ...]:
    """``base_model`` in the YAML head of a model card: one name or a list of names."""
    head = re.match(r"\s{0,99}---\n(.*?)\n---", card[:_CARD_HEAD], re.DOTALL)
    found = re.search(
        r"^base_model:[ \t]*(.*(?:\n[ \t]*-[ \t]+.*)*)", head[1] if head else "", re.MULTILINE
    )
    return tuple(re.findall(r"[\w.-]{1,96}/[\w.-]{1,96}", found[1])) if found else ()


def _verifier(config: Config) -> tuple[str, ...]:
    """The model that a drafter in the speculators format was trained for."""
    known = config.get("speculators_config")
    verifier = known.get("verifier") if isinstance(known, dict) else None
    name = verifier.get("name_or_path") if isinstance(verifier, dict) else None
    return (name,) if isinstance(name, str) and name else ()


def _header(path: Path) -> frozenset[str] | None:
    """The tensors of one safetensors file: eight bytes of length, then JSON by name."""
    try:
        with edge.open_file(path) as file:
            length = int.from_bytes(edge.read_some(file, 8), "little")
            text = edge.read_some(file, length) if length <= _MOST_HEADER else b"null"
        known = edge.parse_json(text)
    except (OSError, edge.EdgeError):
        return None
    return frozenset(known) - {"__metadata__"} if isinstance(known, dict) and known else None


def _weight_bytes(files: _Files, index: Config) -> int | None:
    on_disk = files.weight_bytes()
    if on_disk is not None:
        return on_disk
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    known = isinstance(total, int | float) and not isinstance(total, bool) and 0 < total < 1e18
    return int(total) if known and total is not None else None
