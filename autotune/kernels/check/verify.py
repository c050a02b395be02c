"""What can be said of a fused-MoE configuration file without running it, ours or not.

An *error* is what vLLM cannot read, what the kernel refuses, or a row that is lost. A *warning* is
legal and costs something. A *note* is worth knowing.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from autotune.core import BadInputError, Basis, Candidate
from autotune.kernels.config_file import FIELDS, LIMIT, MOST_ROWS
from autotune.kernels.moe.constraints import CONSTRAINTS, DeviceLimits
from autotune.kernels.moe.file_name import Named, assumed_sizes, parse_name
from autotune.kernels.moe.from_model import FINEST_BLOCK
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import VARIANTS
from autotune.machine.devices import Device
from autotune.util import edge
from autotune.util.flags import MOST_TOKENS

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
_NEEDED = FIELDS[:4]
_MOST_SAID = 20
_OTHER_KERNELS = ("tile_m", "tile_n", "tile_k")
_HIP_FIELDS = ("waves_per_eu", "matrix_instr_nonkdim", "kpack")


@dataclass(frozen=True)
class FileFinding:
    """One thing said of a file; ``keys`` are the batch sizes that it is said of."""

    level: Level
    code: str
    text: str
    keys: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"keys": list(self.keys)}


@dataclass
class Verified:
    """A file and what was found.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        named: its name taken apart.
        device: that it is judged by, for people; empty where none is known.
        limits: of that device.
        shape: of the layer, with assumed hidden size and top-k; None for other kernels.
        rows: what vLLM reads, where it can be read.
        findings: in the order found.
    """

    path: Path
    sha256: str = ""
    named: Named | None = None
    device: str = ""
    limits: Device | DeviceLimits | None = None
    shape: MoeShape | None = None
    rows: dict[int, Candidate] = field(default_factory=dict)
    findings: list[FileFinding] = field(default_factory=list)

    def say(self, level: Level, code: str, text: str, keys: Iterable[int] = ()) -> None:
        """Add a finding."""
        self.findings.append(FileFinding(level, code, text, tuple(keys)))

    def worst(self) -> Level | None:
        """The gravest level found."""
        found = {finding.level for finding in self.findings}
        return next((level for level in LEVELS if level in found), None)

    @property
    def study_device(self) -> Device | None:
        """The device's whole description; None where only its limits are known, or nothing."""
        return self.limits if isinstance(self.limits, Device) else None

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            "device": self.device,
            "keys": list(self.rows),
            "worst": self.worst(),
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass(frozen=True)
class Judge:
    """By what files are judged.

    Attributes:
        device: given by the user, instead of the name's.
        sizes: hidden size and top-k, which no name holds; None to assume them.
    """

    device: Device | None = None
    sizes: tuple[int, int] | None = None


def verify(path: Path, judge: Judge) -> Verified:
    """Judge one file by its bytes, its name and arithmetic."""
    try:
        data = edge.read_bytes(path, LIMIT)
    except (OSError, edge.EdgeError) as error:
        done = Verified(path)
        said = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        done.say("error", "unreadable", said)
        return done
    done = Verified(path, hashlib.sha256(data).hexdigest())
    _name(done, judge)
    document = _document(done, data)
    if document is None:
        return done
    _form(done, data, document)
    _provenance(done)
    if done.named is not None and done.named.backend is not None:
        done.say(
            "note",
            "other-kernel",
            f"read by vLLM's {done.named.backend} backend; its rows are not judged",
        )
        return done
    _rows(done, document)
    _order(done)
    _values(done)
    return done


_TRITON_FOLDER = re.compile(r"triton_(\d+)_(\d+)_(\d+)(_down)?")


def _name(done: Verified, judge: Judge) -> None:
    done.named = parse_name(done.path.name)
    done.limits = judge.device
    done.device = judge.device.name if judge.device else ""
    if done.named is None:
        done.say(
            "warning",
            "name",
            "not a name that vLLM looks for (E=…,N=…,device_name=…[,dtype=…][,block_shape=[n,k]]"
            ".json); judged by its content alone",
        )
        return
    named = done.named
    if said := named.never_read(done.path.name):
        done.say("warning", "never-read", said)
    if _TRITON_FOLDER.fullmatch(done.path.parent.name):
        said = "SGLang keeps files in folders of that name; vLLM reads those of the folder itself"
        done.say("warning", "folder", f"{done.path.parent.name}: {said}, never of one inside")
    if done.limits is None:
        done.limits = named.limits()
        done.device = named.device
    if done.limits is None:
        known = {"amd": "an AMD GPU", "intel": "an Intel GPU"}.get(named.vendor, "unknown here")
        done.say(
            "note",
            "device",
            f"{named.device} is {known}: its shared memory and registers are not judged; give "
            "--device",
        )
    try:
        done.shape = named.shape(*(judge.sizes or assumed_sizes(named)))
    except BadInputError as error:
        done.say("warning", "shape", f"the sizes in the name do not go together: {error}")
        _refined(done, named)


def _refined(done: Verified, named: Named) -> None:
    """Name the file that vLLM 0.32 and newer looks for where a block does not divide the width."""
    fine = math.gcd(*(named.block_shape or (1, 1)), named.intermediate)
    if fine >= FINEST_BLOCK and named.looked_for:
        old, new = "[{},{}]".format(*named.block_shape or (1, 1)), f"[{fine},{fine}]"
        name = named.looked_for.replace(old, new)
        said = f"vLLM refines this block since 0.32 and looks for {name}"
        done.say("warning", "never-read", f"{said} (not of compressed-tensors)")


def _generation(done: Verified, version: str) -> None:
    """Say what another generation of Triton makes of fp8 rows on this device."""
    found = re.match(r"(\d+)\.(\d+)", version)
    fp8 = done.named is not None and done.named.dtype == "fp8_w8a8"
    if fp8 and found and (int(found[1]), int(found[2])) < (3, 8) and _is_gb10(done):
        said = f"made with Triton {version}, which runs fp8 on the fp16 tensor cores of sm_121; "
        done.say("warning", "triton", f"{said}3.8 uses the fp8 ones: tune again there")


def _is_gb10(done: Verified) -> bool:
    return done.limits is not None and done.limits.arch == 121


def _document(done: Verified, data: bytes) -> dict[str, Any] | None:
    """The JSON object; keys that appear twice, or are the same number, are said."""
    twice: set[str] = set()
    try:
        document = edge.parse_json(data, twice)
    except edge.EdgeError as error:
        done.say("error", "json", str(error))
        return None
    for name in sorted(twice)[:_MOST_SAID]:
        said = f"{edge.shown(name)} is there twice; JSON readers keep the last"
        done.say("error", "duplicate", said)
    if not isinstance(document, dict):
        done.say("error", "schema", f"a JSON object is expected, not {type(document).__name__}")
        return None
    if len(document) > MOST_ROWS:
        done.say("error", "schema", f"{len(document)} rows, where {MOST_ROWS} are many")
        return None
    return document


def _form(done: Verified, data: bytes, document: Mapping[str, Any]) -> None:
    version = document.get("triton_version")
    folder = _TRITON_FOLDER.fullmatch(done.path.parent.name)
    if version is None and folder:
        _generation(done, ".".join(folder.groups()[:3]))
    elif version is None:
        done.say("note", "triton", "does not say which Triton it was tuned with")
    elif not isinstance(version, str):
        done.say("warning", "triton", f"triton_version is {edge.shown(version)}, not a text")
    elif "PREDICTED" in version:
        done.say(
            "warning", "predicted", "says of itself that its rows were PREDICTED, not measured"
        )
    else:
        if next(iter(document)) != "triton_version":
            done.say("note", "form", "triton_version does not come first")
        _generation(done, version)
    if data != (json.dumps(document, indent=4) + "\n").encode():
        done.say("note", "form", "not in the form of new files: indent 4, newline at the end")


def _provenance(done: Verified) -> None:
    """What `autotune moe` left beside its file, which alone is as one that was measured."""
    try:
        left = edge.read_json(done.path.parent / "provenance.json")
    except (OSError, edge.EdgeError):
        return
    if isinstance(left, dict) and left.get("basis") == Basis.PREDICTED.value:
        done.say(
            "warning",
            "predicted",
            "the provenance.json beside it says that its rows were PREDICTED, not measured",
        )


def _rows(done: Verified, document: Mapping[str, Any]) -> None:
    """The rows that are whole, into ``done.rows``."""
    for key, row in document.items():
        if key == "triton_version":
            continue
        try:
            m = int(key)
        except ValueError:
            done.say(
                "error", "schema", f"key {edge.shown(key)} is no number of tokens; vLLM fails on it"
            )
            continue
        if m < 1:
            done.say("error", "schema", f"key {edge.shown(key)} is below 1")
        elif m > MOST_TOKENS:
            said = f"key {key[:20]!r} is more tokens than any batch has ({MOST_TOKENS} at most)"
            done.say("error", "schema", said)
        elif m in done.rows:
            done.say("error", "duplicate", f"{m} is there twice, once as {edge.shown(key)}", [m])
        elif not isinstance(row, dict):
            done.say("error", "schema", "the row is not a JSON object", [m])
        elif _fields(done, m, row):
            done.rows[m] = Candidate.of(row)
    if not done.rows:
        done.say("error", "schema", "no usable row")


def _fields(done: Verified, m: int, row: Mapping[str, Any]) -> bool:
    """Whether a row can be judged."""
    missing = [name for name in _NEEDED if name not in row]
    if missing:
        if any(name in row for name in _OTHER_KERNELS):
            done.say("error", "field", "rows of another kernel (tile_m, tile_n, tile_k)", [m])
        else:
            done.say("error", "field", f"{missing[0]} is missing; the launch fails", [m])
        return False
    for name in FIELDS[4:]:
        if name not in row:
            done.say("warning", "field", f"{name} is missing; Triton takes its own", [m])
    vendor = done.named.vendor if done.named else "unknown"
    for name, value in row.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name in FIELDS and not whole:
            done.say("error", "field", f"{name} is {edge.shown(value)}, not a whole number", [m])
            return False
        if not whole and not isinstance(value, str):
            known = "" if name in _HIP_FIELDS else ", an option that vLLM's kernel does not have"
            sglang = " (SGLang's has)" if name == "USE_TMA" else ""
            done.say(
                "error",
                "field",
                f"{edge.shown(name)[1:-1]} is {edge.shown(value)}{known}{sglang}",
                [m],
            )
            return False
        if name in _HIP_FIELDS and vendor == "nvidia":
            done.say("error", "field", f"{name} is an option of AMD's compiler alone", [m])
        elif name not in (*FIELDS, *_HIP_FIELDS) and vendor == "nvidia":
            done.say("note", "field", f"{name} is none of the six that vLLM's tuner writes", [m])
    return True


def _order(done: Verified) -> None:
    keys = list(done.rows)
    if keys != sorted(keys):
        done.say(
            "warning",
            "order",
            "the keys do not ascend; the nearest is found all the same, but of two as near the "
            "first in the file is taken",
        )


def _values(done: Verified) -> None:
    """Legal values, and what the device can hold."""
    shape = done.shape or _any_shape()
    weight_only = done.named is not None and done.named.weight_only
    checks: dict[str, tuple[Level, str]] = {
        "powers_of_two": ("error", "value"),
        "launchable": ("error", "value"),
    }
    if done.shape is not None and not weight_only:
        checks["block_k_deep_enough"] = ("error", "value")
        checks["block_k_not_clamped"] = ("note", "clamped")
    limits, small = done.limits, _with_small_weights(done)
    if limits is not None and done.shape is not None:
        checks["fits_shared_memory"] = ("error", "shared-memory")
        checks["accumulators_fit"] = ("warning", "registers")
    device = limits or _Unlimited()
    for m, row in done.rows.items():
        params = {"num_warps": 4, "num_stages": 3} | {
            name: value for name, value in row.params.items() if name in FIELDS
        }
        for name, (level, code) in checks.items():
            said = CONSTRAINTS[name](params, shape, device)
            if said is None:
                continue
            if small is None or CONSTRAINTS[name](params, small, device) is not None:
                done.say(level, code, said, [m])
            else:
                also = "with bf16 weights; int8 ones, whose files have the same name, fit"
                done.say("warning", code, f"{said} {also}", [m])
            break  # the rest follows from it, or says less


def _with_small_weights(done: Verified) -> MoeShape | None:
    """The layer of the smallest weights whose file has the same name; None for the only one."""
    shape = done.shape
    if shape is None or done.named is None or done.named.dtype is not None or shape.block_shape:
        return None
    same = [v for v in VARIANTS.values() if v.selector == shape.dtype]
    least = min(same, key=lambda variant: variant.element)
    return replace(shape, weight_dtype=least.weights, scheme=least.schemes[0])


@dataclass(frozen=True)
class _Unlimited:
    """No device: nothing is asked of it."""

    arch: int = 0
    shared_memory_per_block: int = 2**62


def _any_shape() -> MoeShape:
    named = parse_name("E=8,N=128,device_name=any.json")
    shape = named.shape(128, 1) if named else None
    assert shape is not None  # noqa: S101 - a constant
    return shape
