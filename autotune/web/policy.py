"""What the network may ask for: paths within roots, and of what runs programs only what is listed.

A request's own checks say whether a command can be understood; these say whether somebody far away
may give it. Flags are classed where they are declared (``reach`` in ``flag``):

- ``place``: a name or a path. A path must lie within the operator's roots.
- ``operator``: it names programs, servers, variables or flags of others. Only what the operator
  listed with ``--allow FIELD=PATTERN`` goes.
- secret flags never come over the network.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from autotune.core import AutotuneError, BadInputError
from autotune.util import flags, secret
from autotune.util.request import Request, extra, is_secret

_NUMBERS = (
    *("max-model-len", "max-num-seqs", "max-num-batched-tokens", "gpu-memory-utilization"),
    *("kv-cache-memory-bytes", "tensor-parallel-size", "pipeline-parallel-size", "block-size"),
    *("dtype", "kv-cache-dtype", "quantization", "moe-backend", "attention-backend", "seed"),
    *("cpu-offload-gb", "swap-space", "max-cudagraph-capture-size", "performance-mode"),
)
"""Flags of ``vllm serve`` whose values are numbers or names from vLLM's own lists."""
_SWITCHES = (
    *("enforce-eager", "enable-prefix-caching", "no-enable-prefix-caching"),
    *("enable-chunked-prefill", "no-enable-chunked-prefill", "async-scheduling"),
    *("no-async-scheduling", "enable-expert-parallel", "language-model-only"),
)
DEFAULT_ALLOW: Mapping[str, tuple[str, ...]] = {
    "set": tuple(f"{name}=*" for name in (*_NUMBERS, *_SWITCHES)),
    "server_arg": (*(f"--{name} *" for name in _NUMBERS), *(f"--{name}" for name in _SWITCHES)),
}
"""What goes without the operator's word."""


class ForbiddenError(AutotuneError):
    """The operator has not allowed this; the text says what to give at the start."""


@dataclass(frozen=True)
class Policy:
    """The operator's roots and lists.

    Attributes:
        root: folder that relative paths start from; the first of the roots.
        roots: further folders whose files jobs may read and write.
        allow: patterns by field; a field with patterns takes only what matches one.
    """

    root: Path
    roots: tuple[Path, ...] = ()
    allow: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def check(self, request: Request) -> None:
        """Check every flag of a request.

        Raises:
            ForbiddenError: the operator has not allowed it.
            BadInputError: a credential, or a study's name that is none.
        """
        declared = dict(request.declared())
        for name in sorted(request.given()):
            value = getattr(request, name)
            flag = request.flag_name(name)
            for one in value if isinstance(value, tuple) else (value,):
                self._check(name, flag, one, extra(declared[name]), declared[name])

    def _check(self, name: str, flag: str, value: Any, known: Mapping[str, Any], info: Any) -> None:
        if is_secret(info):
            raise BadInputError(
                f"{flag}: credentials do not come over the network; set AUTOTUNE_HEADER where the "
                "service starts"
            )
        if name in {"study", "serve_study"}:
            flags.study_name(str(value))
        reach = "place" if isinstance(value, Path) else known.get("reach")
        patterns = (*DEFAULT_ALLOW.get(name, ()), *self.allow.get(name, ()))
        if reach == "operator" or self.allow.get(name):
            for part in _parts(name, str(value)):
                _check_secret(flag, part)
                if not any(fnmatchcase(part, pattern) for pattern in patterns):
                    raise ForbiddenError(
                        f"{flag} {part}: not allowed here; whoever runs the service may start it "
                        f"with --allow '{name.replace('_', '-')}=PATTERN'"
                    )
        if reach == "place":
            self._check_place(flag, str(value))

    def _check_place(self, flag: str, text: str) -> None:
        for part in text.split(","):
            if part == "-" or "\0" in part or part.startswith("~") or "://" in part:
                raise ForbiddenError(f"{flag} {part}: neither a name nor a path of this service")
            if not self.holds(self.root / part):
                roots = ", ".join(map(str, (self.root, *self.roots)))
                raise ForbiddenError(
                    f"{flag} {part}: outside of what jobs may read and write ({roots}); whoever "
                    "runs the service may add --allow-path FOLDER"
                )

    def holds(self, path: Path) -> bool:
        """Tell whether a path, links followed, lies within a root."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(root)) for root in (self.root, *self.roots))


def _parts(name: str, text: str) -> Iterator[str]:
    """Iterate over what one pattern each has to allow: of ``--server-arg`` each flag and value."""
    if name != "server_arg":
        yield text
        return
    words = shlex.split(text)
    at = 0
    while at < len(words):
        flag, equals, value = words[at].partition("=")
        at += 1
        values = [value] if equals else []
        while not equals and at < len(words) and not words[at].startswith("-"):
            values.append(words[at])
            at += 1
        yield " ".join([flag, *values])


def _check_secret(flag: str, text: str) -> None:
    name, equals, value = text.partition("=")
    if equals and secret.is_secret_name(name) and not secret.is_reference(value):
        raise BadInputError(
            f"{flag} {name}: credentials do not come over the network; give the reference "
            f"{name}=${{{name}}} and set {name} where the service starts"
        )


def parse_allow(texts: Sequence[str], fields: set[str]) -> dict[str, tuple[str, ...]]:
    """Read ``--allow FIELD=PATTERN``.

    Args:
        texts: as given.
        fields: of all kinds of jobs.

    Raises:
        BadInputError: there is no such flag, or no pattern.
    """
    allowed: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, pattern = text.partition("=")
        known = name.lstrip("-").replace("-", "_")
        if not equals or not pattern or known not in fields:
            raise BadInputError(
                f"--allow {text}: expected FLAG=PATTERN, such as 'target=google/*' or 'env=VLLM_*'"
            )
        allowed[known] = (*allowed.get(known, ()), pattern)
    return allowed
