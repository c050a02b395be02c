"""Where a study's file can go without a checkout: one row of a table for each place.

A new place is a :class:`Target` in :data:`TARGETS`, and its name in ``cli/requests.py``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.core import Basis
from autotune.export.files import write_files
from autotune.kernels.config_file import render
from autotune.kernels.export import sglang, upstream
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.report.notes import PREDICTED_NOTE, few_keys
from autotune.kernels.stored import Tuned
from autotune.util.markdown import escape, in_code

PREDICTED_MARK = "PREDICTED by autotune, not measured"


@dataclass(frozen=True)
class Exported:
    """What an export left: its files, a branch where there is one, and what to do with them."""

    target: str
    basis: str
    files: tuple[str, ...]
    say: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    branch: str | None = None
    commit: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def rendered(tuned: Tuned) -> bytes:
    """The file for vLLM; a predicted one says so where the reader does not look."""
    version = str(tuned.setup["triton"])
    if tuned.basis is not Basis.MEASURED:
        version += f" ({PREDICTED_MARK})"
    return render(tuned.configs, version)


def warnings_of(tuned: Tuned) -> tuple[str, ...]:
    """Say what must be known of the file, wherever it goes."""
    said = [] if tuned.basis is Basis.MEASURED else [PREDICTED_NOTE]
    if few := few_keys(len(tuned.rows)):
        said.append(few)
    return tuple(said)


@dataclass(frozen=True)
class Target:
    """A place for a study's file.

    Attributes:
        folder: below the study's outputs, where the user names none.
        files: what makes each of its files, by its path in the folder; the first is the file.
        say: what to do with them, given the folder.
        warnings: beside those of every place.
    """

    folder: str
    files: Callable[[Tuned], Mapping[str, Callable[[Tuned], bytes]]]
    say: Callable[[Tuned, Path], tuple[str, ...]]
    warnings: tuple[str, ...] = ()


def _say_folder(tuned: Tuned, folder: Path) -> tuple[str, ...]:
    return (
        f"VLLM_TUNED_CONFIG_FOLDER={shlex.quote(str(folder))} vllm serve …",
        "it is picked up when vLLM logs: Using configuration from "
        f"{folder / tuned.file_name} for MoE layer.",
        "where it does not, another backend runs these layers: add --moe-backend triton",
    )


def _sglang_name(tuned: Tuned) -> str:
    gpu = str(tuned.setup.get("gpu") or tuned.device.gpu_names[0])
    return sglang.file_name(tuned.shape, gpu)


def _sglang_path(tuned: Tuned) -> Path:
    version = str(tuned.setup["triton"]).replace(".", "_")
    return Path("configs") / f"triton_{version}" / _sglang_name(tuned)


def _say_sglang(tuned: Tuned, folder: Path) -> tuple[str, ...]:
    return (
        f"SGLANG_MOE_CONFIG_DIR={shlex.quote(str(folder))} python -m sglang.launch_server …",
        f"upstream it belongs to {sglang.FOLDER_IN_REPO}/{_sglang_path(tuned).parent.name}",
        "no _down file: both GEMMs were timed together, with the same row",
    )


def _about_sglang(tuned: Tuned) -> bytes:
    """Return the text that says what SGLang's file is."""
    scheme = " (per channel)" if tuned.shape.scheme is Scheme.CHANNEL else ""
    said = (
        PREDICTED_NOTE
        if tuned.basis is not Basis.MEASURED
        else f"Measured on {tuned.setup.get('gpu')} with the kernel of vLLM {tuned.setup['vllm']}: "
        f"{tuned.overall:.3f}× vLLM's defaults in the geometric mean over {len(tuned.rows)} keys. "
        "SGLang's kernel is another one, with other defaults: measure before relying on it."
    )
    text = (
        f"# {escape(tuned.study)} for SGLang\n\n`{in_code(_sglang_name(tuned))}` for Triton "
        f"{escape(str(tuned.setup['triton']))}, "
        f"{upstream.what(tuned)}{scheme}.\n\n{escape(said)}\n"
    )
    return text.encode()


TARGETS: dict[str, Target] = {
    "folder": Target("export", lambda tuned: {tuned.file_name: rendered}, _say_folder),
    "sglang": Target(
        "sglang",
        lambda tuned: {
            str(_sglang_path(tuned)): lambda tuned: sglang.render(tuned.configs),
            "README.md": _about_sglang,
        },
        _say_sglang,
        ("timed with vLLM's kernel, not with SGLang's: measure it there",),
    ),
}
"""By the name that ``--to`` takes; ``vllm`` is a commit in a checkout (``publish.to_vllm``)."""


def write_target(name: str, tuned: Tuned, dest: Path) -> Exported:
    """Write the files of one of :data:`TARGETS`.

    Raises:
        BadInputError: the folder cannot be written.
        MissingEnvironmentError: no space is left.
    """
    target, folder = TARGETS[name], dest.absolute()
    files = write_files(folder, target.files(tuned), tuned, "--dest")
    warnings = (*warnings_of(tuned), *target.warnings)
    paths = tuple(map(str, files))
    return Exported(name, tuned.basis.value, paths, target.say(tuned, folder), warnings)
