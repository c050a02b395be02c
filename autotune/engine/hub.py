"""A model's small files as every half needs them: from the hub or its cache, and nested configs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.core import BadInputError
from autotune.util import edge

Config = Mapping[str, Any]

# Where a multimodal config keeps its language model, outermost first; the last is that of a drafter
# in the format of vllm-project/speculators.
_NESTED = (
    "thinker_config",
    "text_config",
    "language_config",
    "llm_config",
    "transformer_layer_config",
)


class HubUnreachableError(Exception):
    """Neither the hub nor its cache gave the file; says why."""


def text_config(config: Config) -> Config:
    """The configuration of the language model inside a multimodal one; else the one given."""
    inner = next((config[n] for n in _NESTED if isinstance(config.get(n), dict)), None)
    return config if inner is None else text_config(inner)


def architecture_of(config: Config) -> str:
    """The first of ``architectures``; empty where there is none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def is_hub_id(ref: str) -> bool:
    """Tell whether a name has the form of a hub id, ``org/name``."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", ref) is not None


def is_on_hub(ref: str) -> bool:
    """Tell whether a name is that of a model on the hub, and of nothing on this machine."""
    return is_hub_id(ref) and not Path(ref).exists()


def hub_file(ref: str, name: str, flag: str) -> Path | None:
    """A file of a model on the hub, downloaded or from its cache; None if the model lacks it.

    Args:
        ref: the hub id, ``org/name``.
        name: of the file.
        flag: where ``ref`` was given, for messages.

    Raises:
        BadInputError: no such model, or a file of a size that none should have.
        HubUnreachableError: the hub does not answer, and its cache does not hold the file.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - slow to import
    from huggingface_hub.errors import (  # noqa: PLC0415
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        size = _size_on_hub(ref, name)
        if size is not None and size > edge.LARGE:
            raise BadInputError(
                f"{flag} {ref}: its {name} has {size} bytes, which no such file should have"
            )
        # What cannot be reached is not tried five times for each file.
        return Path(hf_hub_download(ref, name, local_files_only=size is None))
    except HFValidationError:
        raise BadInputError(f"{flag} {ref}: not a valid hub id") from None
    except RepositoryNotFoundError:
        raise BadInputError(f"{flag} {ref}: the hub has no such model, or it is gated") from None
    except LocalEntryNotFoundError as error:
        raise HubUnreachableError(type(error).__name__) from None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise HubUnreachableError(type(error).__name__) from None


def _size_on_hub(ref: str, name: str) -> int | None:
    """Bytes of a file before it is downloaded: whoever made the model may have put gigabytes there.

    0 where the hub does not tell; the download then says why. None where it cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        return get_hf_file_metadata(hf_hub_url(ref, name)).size or 0
    except (HfHubHTTPError, HFValidationError):
        return 0
    except Exception:  # noqa: BLE001 - of httpx or requests, by the version
        return None
