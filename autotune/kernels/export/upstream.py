"""A change for vLLM in words: title, commit message and the text of the pull request.

What these need is listed in docs/how-to/send-to-vllm.md; the texts are in ``templates``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from autotune.core import Basis
from autotune.decide.stats import Ratio
from autotune.kernels.config_file import FIELDS
from autotune.kernels.export.existing import Comparison
from autotune.kernels.moe.from_model import load_config, model_names, shape_from_config
from autotune.kernels.moe.routing import Routing
from autotune.kernels.report.notes import PREDICTED_NOTE
from autotune.kernels.stored import Gap, Row, Tuned
from autotune.util.markdown import code_line, escape, in_code, in_code_of_a_cell, in_comment
from autotune.util.words import counted

CONFIGS = "vllm/model_executor/layers/fused_moe/configs"
KERNEL_FILE = "vllm/model_executor/layers/fused_moe/fused_moe.py"
TEMPLATE_FILE = ".github/PULL_REQUEST_TEMPLATE.md"
_OWN_TEMPLATE = "## Purpose\n\n## Test Plan\n\n## Test Result\n"
_AI_TODO = (
    "**TO DO, for the person who sends this:** say whether AI tools were used and for what. The "
    "file and this text were made by `autotune`, a program that measures."
)


@dataclass(frozen=True)
class Neighbour:
    """A file in ``configs`` that is close to the new one, and in what it differs."""

    name: str
    subject: str
    differs: str


@dataclass(frozen=True)
class Change:
    """Everything that the texts are made of.

    Attributes:
        tuned: the study.
        model: for people.
        min_gain: with which the rows were chosen.
        base: the checkout's commit, for people.
        same_kernel: whether the checkout's kernel file is the one that was tuned.
        pin: the Triton that the checkout wants, and where that stands.
        neighbours: files close to the new one.
        replaces: old file against new one, measured; None where there is no old one.
        serve: a serving test, as plain values.
        pickup: the line of a server's log.
        cuda: version, where it is known.
        ai: the answer to the question about AI assistance.
        uuids: of the GPUs.
        template: the repository's own, if it has one.
    """

    tuned: Tuned
    model: str
    min_gain: float
    base: str
    same_kernel: bool
    pin: tuple[str, str] | None
    neighbours: tuple[Neighbour, ...]
    replaces: Comparison | None
    serve: Mapping[str, Any] | None
    pickup: str | None
    cuda: str | None
    ai: str | None
    uuids: tuple[str, ...]
    template: str | None

    @property
    def predicted(self) -> bool:
        """Whether nothing was measured."""
        return self.tuned.basis is Basis.PREDICTED


def model_name(tuned: Tuned) -> str:
    """The preset with this shape, without what stands in brackets; else the hidden size."""
    for name in model_names():
        config = load_config(name)
        for tp in (1, 2, 4, 8):
            if config and _fits(config, tuned, tp):
                return name if tp == 1 else f"{name}, TP={tp}"
    return f"hidden size {tuned.shape.hidden}, top-{tuned.shape.topk}"


def _fits(config: Mapping[str, Any], tuned: Tuned, tp: int) -> bool:
    shape = shape_from_config(config)
    sizes = (shape.experts, shape.intermediate, shape.hidden, shape.topk)
    own = tuned.shape
    return sizes == (own.experts, own.intermediate * tp, own.hidden, own.topk)


def what(tuned: Tuned) -> str:
    """Such as ``E=128, N=704, fp8_w8a8``."""
    shape = tuned.shape
    block = f", block_shape={list(shape.block_shape)}" if shape.block_shape else ""
    return f"E={shape.experts}, N={shape.intermediate}, {shape.dtype or shape.weight_dtype}{block}"


def _device(tuned: Tuned) -> str:
    return tuned.device.vllm_name.replace("_", " ")


def title(change: Change) -> str:
    """By the convention of vLLM's own configuration changes."""
    verb = "Update" if change.replaces else "Add"
    mark = "PREDICTED, not measured: " if change.predicted else ""
    return (
        f"[Kernel] {mark}{verb} fused-MoE config for {_device(change.tuned)}: "
        f"{what(change.tuned)} ({change.model})"
    )


def commit_message(change: Change, person: str) -> str:
    """Title, a sentence, and the sign-off."""
    tuned = change.tuned
    if change.predicted:
        said = PREDICTED_NOTE
    else:
        said = (
            f"Measured on {_gpus(tuned)} with vLLM {tuned.setup['vllm']} and Triton "
            f"{tuned.setup['triton']}: {tuned.overall:.3f}x vLLM's defaults in the geometric mean "
            f"over {counted(len(tuned.rows), 'batch size')}; a key that gains less than "
            f"{100 * change.min_gain:.3g} % holds the default's values."
        )
    body = textwrap.fill(said, 72, break_long_words=False, break_on_hyphens=False)
    return f"{title(change)}\n\n{body}\n\nSigned-off-by: {person}\n"


def pull_request(change: Change) -> str:
    """The text of the pull request: the repository's template, filled in."""
    environment = jinja2.Environment(  # noqa: S701 - Markdown, not HTML
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_words,
    )
    environment.filters |= {
        "line": lambda text: _Code(code_line(text).lstrip()),
        "code": lambda text: _Code(in_code(text)),
        "cell": lambda text: _Code(in_code_of_a_cell(text)),
    }
    values = _values(change)
    sections = {
        name: environment.get_template(f"{file}.md.j2").render(values).strip()
        for name, file in (("purpose", "purpose"), ("test plan", "plan"), ("test result", "result"))
    }
    text = _filled(change.template or _OWN_TEMPLATE, sections, change.ai or _AI_TODO)
    return f"<!-- Title: {in_comment(title(change))} -->\n\n{text.strip()}\n"


class _Code(str):
    """Text for code, where words need no escape."""

    __slots__ = ()


def _as_words(value: Any) -> Any:
    """What a template inserts is words, unless it goes into code."""
    return escape(value) if isinstance(value, str) and not isinstance(value, _Code) else value


def _filled(template: str, sections: Mapping[str, str], ai: str) -> str:
    """The template with our text under its headings; what it does not ask for goes before the end.

    A heading about AI assistance gets its answer; one that we know nothing of stays as it is.
    """
    parts = re.split(r"(?m)^(##+ .*)$", re.sub(r"(?m)^PLEASE FILL IN .*\n", "", template))
    left, asked = dict(sections), False
    for index in range(1, len(parts), 2):
        heading = parts[index].lstrip("#").strip().rstrip(":").casefold()
        about_ai = re.search(r"\bai\b", heading) is not None
        given = ai if about_ai else left.pop(heading, None)
        asked |= about_ai
        if given is not None:
            rest = re.search(r"(?m)^(---|<details>).*", parts[index + 1], re.DOTALL)
            parts[index + 1] = f"\n\n{given}\n\n{rest[0] if rest else ''}"
    own = [f"## {name.title()}\n\n{text}\n\n" for name, text in left.items()]
    if not asked:
        own.append(f"## AI assistance\n\n{ai}\n\n")
    last = re.search(r"(?m)^(---|<details>)", text := "".join(parts))
    end = last.start() if last else len(text)
    return text[:end].rstrip() + "\n\n" + "".join(own) + text[end:]


def _values(change: Change) -> dict[str, Any]:
    tuned = change.tuned
    rows = list(tuned.rows.values())
    checked = [row for row in rows if row.error is not None]
    worst = max(checked, key=lambda row: row.error or 0.0, default=None)
    shape = tuned.shape
    return {
        "predicted": change.predicted,
        "predicted_note": PREDICTED_NOTE,
        "what": what(tuned),
        "device": _device(tuned),
        "model": change.model,
        "path": f"{CONFIGS}/{tuned.file_name}",
        "folder": CONFIGS,
        "file_name": tuned.file_name,
        "base": change.base,
        "neighbours": change.neighbours,
        "search": f"E={shape.experts} N={shape.intermediate} {_device(tuned)}",
        "min_gain": f"{100 * change.min_gain:.3g} %",
        "commands": tuned.commands,
        "facts": _facts(change),
        "rounds": max(row.rounds for row in rows),
        "rows": [_row(row) for row in rows],
        "overall": tuned.overall,
        "changed": sum(not row.pinned for row in rows),
        "gaps": [_gap(gap, tuned) for gap in tuned.gaps],
        "replaces": _replaced(change.replaces),
        "serve": change.serve,
        "pickup": change.pickup,
        "worst_error": f"{worst.error:.4f}" if worst else None,
        "worst_m": worst.m if worst else None,
        "unchecked": ", ".join(str(row.m) for row in rows if row.added),
    }


def _interval(ratio: Ratio) -> str:
    return f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio.pairs else ""


def _row(row: Row) -> dict[str, Any]:
    if row.added:
        lost = f"pinned: its neighbour's row lost here ({_said(row.tried)})"
    elif row.tried:
        lost = f"pinned to the default (the best other candidate: {_said(row.tried)})"
    else:
        lost = "pinned to the default"
    return {
        "m": row.m,
        "config": "/".join(str(row.config[name]) for name in FIELDS),
        "default_us": "fails" if row.default_us is None else f"{row.default_us:.1f}",
        "us": f"{row.us:.1f}",
        "speedup": f"{row.ratio.value:.3f}×" if row.ratio else "1" if row.pinned else "",
        "interval": _interval(row.ratio) if row.ratio else "",
        "rounds": row.rounds or "",
        "note": lost if row.pinned else "",
    }


def _said(ratio: Ratio | None) -> str:
    return "it failed" if ratio is None else f"{ratio.value:.3f}×, {_interval(ratio)}"


def _gap(gap: Gap, tuned: Tuned) -> dict[str, Any]:
    added = tuned.rows.get(gap.m)
    return {
        "m": gap.m,
        "key": gap.key,
        "ratio": f"{gap.ratio.value:.3f}",
        "interval": _interval(gap.ratio),
        "note": "lost: a key of its own now, the default" if added and added.added else "",
    }


def _replaced(compared: Comparison | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    rows = [
        {
            "m": row.m,
            "old": "" if row.first_us is None else f"{row.first_us:.1f}",
            "new": "" if row.second_us is None else f"{row.second_us:.1f}",
            "ratio": "" if row.ratio is None else f"{row.ratio:.3f}",
            "interval": "" if row.low is None else f"{row.low:.3f} to {row.high:.3f}",
            "note": row.note,
        }
        for row in compared.rows
    ]
    return {
        "with_": f"vLLM {compared.vllm}, Triton {compared.triton}",
        "overall": compared.geometric_mean,
        "rows": rows,
    }


def _facts(change: Change) -> Sequence[tuple[str, str]]:
    tuned = change.tuned
    setup, last = tuned.setup, tuned.environments[-1]
    pin, where = change.pin or ("not found", "its requirements")
    routing = Routing.from_setup(setup)
    same = "the same kernel file" if change.same_kernel else "ANOTHER kernel file"
    facts = {
        "vLLM": f"{setup['vllm']}, fused_moe.py sha256 {setup['kernel_sha256'][:16]}",
        "this branch starts from": f"{change.base}, with {same}",
        "Triton": f"{setup['triton']} (the checkout's: {pin}, by {where})",
        "torch": setup.get("torch") or last["packages"]["torch"] or "unknown",
        "CUDA": change.cuda or "not recorded",
        "GPU": _gpus(tuned),
        "GPU UUID": ", ".join(change.uuids) or "none",
        "driver": setup.get("driver") or "none",
        "host": f"{last['system']}, {last['machine']}, Python {last['python']}",
        "layer": f"{what(tuned)} ({tuned.shape.scheme.value}), K={tuned.shape.hidden}, "
        f"top-{tuned.shape.topk}",
        "search": f"{counted(tuned.trials, 'trial')}, space {setup['space']['name']}, sampler "
        f"{setup['sampler']}, seed {setup['seed']}, autotune {last['autotune']}",
    }
    if not routing.uniform:
        facts["experts are chosen"] = routing.label
    return list(facts.items())


def _gpus(tuned: Tuned) -> str:
    if tuned.basis is Basis.PREDICTED:
        return f"none (predicted for {_device(tuned)})"
    return str(tuned.setup.get("gpu") or tuned.device.title)
