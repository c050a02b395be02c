"""What a vLLM server says of itself in its log: MoE files, graphs, speculation, memory, backends.

Sources, vLLM 0.32: ``fused_moe.py`` (``get_moe_configs``), ``fp8_utils.py``, ``mamba_ssm.py``,
``fused_moe/oracle/*.py``, ``config/vllm.py`` (graph sizes), ``kv_cache_utils.py``,
``config/speculative.py`` (``__repr__``), ``v1/spec_decode/metrics.py``. On a CPU the MoE kernel
does not run, and none of its lines is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import PurePosixPath
from typing import Any

from autotune.serving.logs.read import Line

_USED = re.compile(r"Using configuration from (.{1,1000}?) for (MoE layer|W8A8 Block FP8 kernel)")
_MISSING = re.compile(r"Using default .{1,200}Config file not found at (.+)")
_FILE = re.compile(r"Using default .{1,200}Config file not found at (/\S{1,1000}\.json)")
_WRAPPED = 5
"""Lines that the warning may have become on a narrow terminal."""
_INSTALLED = "vllm/model_executor/layers/"
_DEVICE = re.compile(r"device_name=([^,/]+?)(?:,|\.json|$)")
_VERSION = re.compile(r"LLM engine \(v([^)\s]{1,60})\)|vLLM API server version (\S{1,60})")
_MODEL = re.compile(r"(?<![\w_])model='([^']{1,300})'|'model(?:_tag)?': '([^']{1,300})'")
_BACKEND = re.compile(
    r"Using '?([\w.-]{1,80})'? (?:\w+ )?\w+ (?:MoE|MOE) backend"
    r"|Using '?(\w{1,80})'? (?:MoE|MOE) backend"
)
_FP8 = re.compile(
    r"Selected (\w{1,80}) for (\w{1,80})|Using (\w{1,80}) for (\w+ GEMM|mixed-precision linear)"
    r"|(does not have native support for FP\d computation)"
)
_TRITON = re.compile(r"\btriton(?:==|[ -][Vv]ersion[: ]+| )(\d{1,4}\.\d{1,4}(?:\.\d{1,4})?)", re.I)
_KV = re.compile(r"KV cache size: ([\d,]{1,20}) tokens")
_CONCURRENCY = re.compile(
    r"Maximum concurrency for ([\d,]{1,20}) tokens per request: ([\d.]{1,20})x"
)
_KV_GIB = re.compile(r"Available KV cache memory: (-?[\d.]{1,20}) GiB")
_GRAPHS = re.compile(
    r"Truncating max_cudagraph_capture_size to \d+|cudagraph_capture_sizes specified in .{1,800}"
    r"|[Cc]udagraph mode \S+ (?:requires|is not).{1,300}|setting cudagraph_mode=\S+"
    r"|[Ss]kipping CUDA graph capture.{0,200}|Overriding cudagraph.{0,200}"
)
_CAPTURED = re.compile(r"Graph capturing finished in (\d{1,9}) secs, took (-?[\d.]{1,20}) GiB")
_SPEC = re.compile(
    r"SpeculativeConfig\(method='?([\w-]{1,60})'?, model=(?:'([^']{1,300})'|None), "
    r"num_spec_tokens=(\d{1,4})"
)
_METRICS = re.compile(
    r"Mean acceptance length: ([\d.]{1,12}),.{1,200}?Accepted: (\d{1,15}) tokens, "
    r"Drafted: (\d{1,15}) tokens"
)
_UP = re.compile(
    r"Application startup complete|Uvicorn running on|\"(?:POST|GET) /\S* HTTP/1\.[01]\" 200"
    r"|Avg generation throughput: "
)
_DEAD = re.compile(
    r"EngineDeadError|EngineCore encountered a fatal error|died unexpectedly|exited unexpectedly"
    r"|EngineCore failed to start|initialization failed|exited with code \d+$|Main process exited"
)
_MARK = re.compile(
    r"vllm|EngineCore|APIServer|docker: |podman|Traceback|\[shutdown\]|Uvicorn", re.I
)


@dataclass
class Facts:
    """What a log tells; None, zero or empty where it does not.

    Attributes:
        vllm: version.
        model: name or path.
        triton: version.
        up: whether the server answered at some time.
        dead: whether its engine ended.
        moe_used: tuned files taken, by path.
        moe_missing: paths that were looked at in vain.
        moe_backends: kernels of the MoE layers.
        fp8: kernels of quantised layers.
        graphs: what was said of graph captures that are fewer than asked for.
        graph_gib: memory that the graphs took.
        kv_tokens: capacity of the KV cache, all engines together.
        kv_gib: memory for the KV cache, of the last engine that told.
        context: tokens of the longest request.
        concurrency: requests of that length at once, of one engine.
        method, drafter, gamma: of speculation.
        drafted, accepted: tokens, over all reports in the log.
        acceptance_length: mean tokens a step, weighted by what was drafted.
    """

    vllm: str | None = None
    model: str | None = None
    triton: str | None = None
    up: bool = False
    dead: bool = False
    moe_used: list[str] = field(default_factory=list)
    moe_missing: list[str] = field(default_factory=list)
    moe_backends: list[str] = field(default_factory=list)
    fp8: list[str] = field(default_factory=list)
    graphs: list[str] = field(default_factory=list)
    graph_gib: float | None = None
    kv_tokens: int | None = None
    kv_gib: float | None = None
    context: int | None = None
    concurrency: float | None = None
    method: str | None = None
    drafter: str | None = None
    gamma: int | None = None
    drafted: int = 0
    accepted: int = 0
    acceptance_length: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The attributes as JSON values."""
        return asdict(self)

    @property
    def overridden(self) -> list[str]:
        """Files taken from a folder of the user, before any that vLLM brings."""
        return [path for path in self.moe_used if _INSTALLED not in path]

    @property
    def asked_for(self) -> list[str]:
        """Names of files that vLLM looked for and did not find."""
        return sorted({PurePosixPath(path).name for path in self.moe_missing})

    @property
    def folders(self) -> list[str]:
        """Folders of the user that were looked into in vain."""
        found = (str(PurePosixPath(p).parent) for p in self.moe_missing if _INSTALLED not in p)
        return list(dict.fromkeys(found))

    @property
    def device(self) -> str | None:
        """The device by the names of the MoE files."""
        names = map(_DEVICE.search, (*self.moe_used, *self.moe_missing))
        return next((found[1] for found in names if found), None)


def _not_found(texts: Sequence[str]) -> list[str]:
    """Paths that the warning names; it goes on in further lines where a terminal wrapped it.

    Spaces at the ends of lines are gone: each end may have had one.
    """
    counts = range(0) if _FILE.search(texts[0]) else range(2, len(texts) + 1)
    for count in counts:
        for ends in product(("", " "), repeat=count - 1):
            whole = texts[0] + "".join(map("".join, zip(ends, texts[1:count], strict=True)))
            if found := _FILE.search(whole):
                return [found[1]]
    known = _MISSING.search(texts[0])
    return [path.strip() for path in known[1].split(", ")] if known else []


def moe_files(lines: Iterable[Line]) -> dict[str, Any]:
    """``moe_used`` and ``moe_missing``: paths of files, empty where the log names none."""
    used: set[str] = set()
    missing: set[str] = set()
    lines = list(lines)
    for at, line in enumerate(lines):
        if "onfig" not in line.text:
            continue
        used.update(path for path, layer in _USED.findall(line.text) if layer == "MoE layer")
        if "Using default MoE config" in line.text:
            missing.update(_not_found([one.text for one in lines[at : at + _WRAPPED]]))
    return {"moe_used": sorted(used), "moe_missing": sorted(missing)}


def facts_of(lines: Sequence[Line]) -> Facts:
    """Everything that a log tells of the server's settings and speed."""
    facts = Facts(**moe_files(lines))
    weighted = 0.0
    capacity: dict[str, int] = {}
    for line in lines:
        text = line.text
        facts.up |= _UP.search(text) is not None
        facts.dead |= _DEAD.search(text) is not None
        if found := _VERSION.search(text):
            facts.vllm = found[1] or found[2]
        _settings(facts, text)
        _kernels(facts, text)
        if found := _KV.search(text):
            capacity[line.source] = int(found[1].replace(",", "") or 0)
        if found := _CONCURRENCY.search(text):
            facts.context = int(found[1].replace(",", "") or 0)
            facts.concurrency = _number(found[2])
        if found := _METRICS.search(text):
            drafted = int(found[3])
            facts.accepted, facts.drafted = facts.accepted + int(found[2]), facts.drafted + drafted
            weighted += drafted * (_number(found[1]) or 0.0)
    engines = [tokens for source, tokens in capacity.items() if not source.startswith("Worker")]
    facts.kv_tokens = sum(engines or capacity.values()) or None
    facts.acceptance_length = weighted / facts.drafted if facts.drafted else None
    return facts


def _settings(facts: Facts, text: str) -> None:
    if facts.model is None and (found := _MODEL.search(text)):
        facts.model = found[1] or found[2]
    if found := _SPEC.search(text):
        facts.method, facts.drafter, facts.gamma = found[1], found[2], int(found[3])
    if found := _TRITON.search(text):
        facts.triton = found[1]
    if found := _KV_GIB.search(text):
        facts.kv_gib = _number(found[1])


def _kernels(facts: Facts, text: str) -> None:
    if found := _BACKEND.search(text):
        _add(facts.moe_backends, found[1] or found[2])
    if found := _FP8.search(text):
        pair = found[1] or found[3], found[2] or found[4]
        _add(facts.fp8, f"{pair[0]} for {pair[1]}" if pair[0] else "weight-only (Marlin)")
    if found := _GRAPHS.search(text):
        _add(facts.graphs, found[0])
    if found := _CAPTURED.search(text):
        facts.graph_gib = _number(found[2])


def _add(found: list[str], text: str) -> None:
    if text not in found and len(found) < 8:
        found.append(text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def is_servers(lines: Iterable[Line]) -> bool:
    """Whether somebody of a server's surroundings wrote any of the lines."""
    return any(line.level or line.source or _MARK.search(line.text) for line in lines)
