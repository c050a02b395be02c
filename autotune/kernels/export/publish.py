"""From a stored study to the three places where its file can go, and what speaks against it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.core import BadInputError, Basis
from autotune.export.checkout import Checkout
from autotune.export.files import check_writable, write_whole
from autotune.kernels.export import existing, upstream
from autotune.kernels.export.existing import Comparison, New
from autotune.kernels.export.targets import Exported, rendered, warnings_of
from autotune.kernels.export.upstream import CONFIGS, KERNEL_FILE, TEMPLATE_FILE, Change, Neighbour
from autotune.kernels.stored import Tuned
from autotune.util import edge

TRITON_OF_TORCH = {"2.8.0": "3.4.0", "2.9.0": "3.5.0", "2.9.1": "3.5.1", "2.10.0": "3.6.0"} | {
    "2.11.0": "3.6.0",
    "2.13.0": "3.7.1",
    "2.14.0": "3.8.0",
}
"""What these releases of torch require, by their wheels on PyPI; 2.12.0 is not known here."""


_LOG_BYTES = 64 * edge.MIB
"""Of the beginning and of the end of a server's log; the line comes early."""


def check(tuned: Tuned, *, allow_predicted: bool) -> None:
    """Refuse what must not leave.

    Raises:
        BadInputError: with the reason.
    """
    if tuned.basis is not Basis.MEASURED and not allow_predicted:
        raise BadInputError(
            f"study {tuned.study!r} is PREDICTED, nothing in it was measured; run `autotune moe "
            "--device auto` on the GPU, or pass --allow-predicted and everything written says so"
        )
    if tuned.unconfirmed:
        keys = ", ".join(map(str, tuned.unconfirmed))
        raise BadInputError(
            f"study {tuned.study!r}: M={keys} never met vLLM's default side by side; run the same "
            "`autotune moe` command again, it goes on from there"
        )


@dataclass(frozen=True)
class VllmOptions:
    """What the user says of a change for vLLM.

    Attributes:
        dest: folder for PULL_REQUEST.md.
        branch: to make; None for a name from the file's.
        person: who signs off; None for the checkout's user.
        model: for people; None to find it by the shape.
        min_gain: with which the rows were chosen.
        compared: the document of `autotune compare --json`, of the file there and this one.
        serve: a serving test, as plain values.
        serve_log: the log of a server that picked the file up.
        cuda: version, where it is known.
        ai: the answer to the question about AI assistance.
    """

    dest: Path
    branch: str | None = None
    person: str | None = None
    model: str | None = None
    min_gain: float = 0.01
    compared: Path | None = None
    serve: Mapping[str, Any] | None = None
    serve_log: Path | None = None
    cuda: str | None = None
    ai: str | None = None


def to_vllm(tuned: Tuned, checkout: Checkout, options: VllmOptions) -> Exported:
    """A branch of the checkout with one signed-off commit of one file, and PULL_REQUEST.md.

    Raises:
        BadInputError: no vLLM there, its Triton is newer, its file is as good, or git refuses.
        MissingEnvironmentError: git is missing, or space on the disk.
    """
    if not checkout.names(CONFIGS):
        raise BadInputError(f"{checkout.flag} {checkout.path}: has no {CONFIGS}; is it vLLM's?")
    data = rendered(tuned)
    pin = triton_pin(checkout)
    _check_triton(str(tuned.setup["triton"]), pin, checkout)
    new = New(f"{CONFIGS}/{tuned.file_name}", data, tuned.device, tuned.shape)
    replaces = existing.check(new, checkout, options.compared, options.min_gain)
    person = options.person or checkout.person()
    branch = options.branch or _branch(tuned)
    checkout.check_branch(branch)
    change = _change(tuned, checkout, options, pin, replaces)
    text, words = options.dest / "PULL_REQUEST.md", upstream.pull_request(change).encode()
    check_writable(options.dest, "--dest")
    message = upstream.commit_message(change, person)
    commit = checkout.commit_file(branch, new.name, data, message, person)
    write_whole(text, words, "--dest")
    shown = shlex.quote(str(checkout.path))
    return Exported(
        "vllm",
        tuned.basis.value,
        (str(text),),
        (
            f"branch {branch}, commit {commit[:12]} on {change.base}, signed off by {person}",
            f"look at it: git -C {shown} show {branch}",
            f"nothing was pushed; answer what PULL_REQUEST.md marks TO DO: {text}",
        ),
        (*warnings_of(tuned), *_doubts(change, checkout)),
        branch,
        commit,
    )


def _change(
    tuned: Tuned,
    checkout: Checkout,
    options: VllmOptions,
    pin: tuple[str, str] | None,
    replaces: Comparison | None,
) -> Change:
    template, kernel = checkout.read(TEMPLATE_FILE), checkout.read(KERNEL_FILE)
    recorded = (one.get("cuda") for one in reversed(tuned.environments))
    return Change(
        tuned=tuned,
        model=options.model or upstream.model_name(tuned),
        min_gain=options.min_gain,
        base=f"{checkout.describe()} ({checkout.base[:12]})",
        same_kernel=kernel is not None and existing.sha256(kernel) == tuned.setup["kernel_sha256"],
        pin=pin,
        neighbours=_neighbours(tuned, checkout),
        replaces=replaces,
        serve=options.serve,
        pickup=_pickup(tuned, options.serve_log),
        cuda=options.cuda or next(filter(None, recorded), None),
        ai=options.ai,
        uuids=tuned.gpus or _uuids_of_the_kind(tuned),
        template=template.decode(errors="replace") if template else None,
    )


def _doubts(change: Change, checkout: Checkout) -> list[str]:
    """What a reviewer would ask."""
    doubts = []
    if not change.same_kernel:
        doubts.append(
            f"the checkout's fused_moe.py is not the one of vLLM {change.tuned.setup['vllm']} that "
            "was tuned; reviewers ask for tuning on newest main"
        )
    if change.pin is None:
        doubts.append("no Triton version found in the checkout's requirements; compare it yourself")
    if checkout.dirty():
        doubts.append("the checkout has changes of its own; they stay, and are not in the commit")
    if checkout.branch not in {None, "main", "master"}:
        doubts.append(
            f"the branch starts from {checkout.branch}, not from main: --base origin/main"
        )
    return doubts


def _branch(tuned: Tuned) -> str:
    stem = tuned.file_name.removesuffix(".json").replace("device_name=", "")
    return "moe-config-" + re.sub(r"[^a-z0-9_]+", "-", stem.lower()).strip("-")


def _uuids_of_the_kind(tuned: Tuned) -> tuple[str, ...]:
    """All GPUs of the tuned name that the machine had, one or more of which measured."""
    if tuned.basis is not Basis.MEASURED:
        return ()
    name = str(tuned.setup.get("gpu"))
    gpus = (gpu for one in tuned.environments for gpu in one["gpus"])
    return tuple(dict.fromkeys(gpu["uuid"] for gpu in gpus if gpu["name"] == name))


def triton_pin(checkout: Checkout) -> tuple[str, str] | None:
    """The Triton version that a vLLM checkout asks for, and where it says so.

    A line ``triton==…`` among its requirements, else the one that its torch requires.
    """
    folders = ("requirements", "requirements/test")
    files = [f"{f}/{name}" for f in folders for name in checkout.names(f) if _for_cuda(name)]
    texts = {name: (checkout.read(name) or b"").decode(errors="replace") for name in files}
    for name, text in texts.items():
        found = re.search(r"(?m)^triton[ \t]*==[ \t]*([\d.]{1,32})", text)
        if found:
            return found[1], name
    for name, text in texts.items():
        found = re.search(r"(?m)^torch[ \t]*==[ \t]*([\d.]{1,32})", text)
        if found and found[1] in TRITON_OF_TORCH:
            return TRITON_OF_TORCH[found[1]], f"{name}, torch {found[1]}"
    return None


def _for_cuda(name: str) -> bool:
    other = ("rocm", "xpu", "cpu", "tpu", "hpu", "neuron")
    return name.endswith((".txt", ".in")) and not any(word in name for word in other)


def _check_triton(tuned_with: str, pin: tuple[str, str] | None, checkout: Checkout) -> None:
    if pin is not None and _release(tuned_with) < _release(pin[0]):
        raise BadInputError(
            f"{checkout.flag} {checkout.path}: wants Triton {pin[0]} ({pin[1]}), and the study was "
            f"tuned with {tuned_with}, which is older; tune again with that vLLM"
        )


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version[:32])
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _neighbours(tuned: Tuned, checkout: Checkout) -> tuple[Neighbour, ...]:
    """Files of the same E and N, and what they differ in."""
    start = f"E={tuned.shape.experts},N={tuned.shape.intermediate},"
    names = checkout.names(CONFIGS)
    near = [name for name in names if name.startswith(start) and name != tuned.file_name]
    own = _parts(tuned.file_name)
    found = []
    for name in near[:20]:
        parts = _parts(name)
        differs = [
            f"{key.replace('_name', '').replace('_', ' ')} ({parts.get(key, 'none')})"
            for key in sorted(parts.keys() | own.keys())
            if parts.get(key) != own.get(key)
        ]
        subject = checkout.last_subject(f"{CONFIGS}/{name}").replace("|", "/")
        found.append(Neighbour(name, subject, ", ".join(differs)))
    return tuple(found)


def _parts(name: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\[[^]]*\]|[^,]*)", name.removesuffix(".json")))


def _pickup(tuned: Tuned, log: Path | None) -> str | None:
    """The line of a server's log that proves the pick-up.

    Raises:
        BadInputError: the log cannot be read, or has none for this file.
    """
    if log is None:
        return None
    try:
        text = edge.read_ends(log, _LOG_BYTES, _LOG_BYTES).decode("utf-8", "replace")
    except (OSError, edge.EdgeError) as error:
        raise edge.bad_input(f"--serve-log {log}", error) from None
    wanted = rf"Using configuration from \S{{0,4096}}{re.escape(tuned.file_name)}\b.{{0,200}}"
    found = re.search(wanted, text)
    if found:
        return found[0].strip()
    raise BadInputError(
        f"--serve-log {log}: has no line «Using configuration from …/{tuned.file_name}»"
    )
