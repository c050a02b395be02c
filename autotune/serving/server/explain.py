"""Explains a server's log: whether it started, what ended it, and what it says of its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autotune.core import BadInputError
from autotune.serving.logs.errors import find_errors
from autotune.serving.logs.facts import Facts, facts_of, is_servers
from autotune.serving.logs.kinds import ADVICE, OUTCOMES, FailureKind
from autotune.serving.logs.read import is_text, lines_of
from autotune.serving.server.failures import judge

STARTED, STARTING, STOPPED, FAILED = "started", "not started yet", "stopped", "failed"


@dataclass(frozen=True)
class Explanation:
    """What a log says.

    Attributes:
        state: ``started``, ``not started yet`` (the log ends before), ``stopped`` (by a signal,
            after it had served) or ``failed``.
        kind: class of the failure; None where there was none.
        cause: in one line; also the last error of a server that goes on serving, else empty.
        facts: what it says of itself.
    """

    state: str
    kind: FailureKind | None
    cause: str
    facts: Facts

    @property
    def failed(self) -> bool:
        """Whether the server failed."""
        return self.state == FAILED

    @property
    def advice(self) -> str:
        """What to do about it; empty where nothing failed."""
        return "" if self.kind is None else ADVICE[self.kind]

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "state": self.state,
            "failure": self.kind.value if self.kind else None,
            "outcome": OUTCOMES[self.kind].value if self.kind else None,
            "cause": self.cause or None,
            "advice": self.advice or None,
            **self.facts.as_json(),
            "moe_overridden": self.facts.overridden,
            "device": self.facts.device,
        }


def explain(data: bytes) -> Explanation:
    """Explain the bytes of a log.

    Raises:
        BadInputError: empty, no text, or nothing that a server's surroundings write.
    """
    if not data.strip(b"\0 \t\r\n"):
        raise BadInputError("the log is empty")
    if not is_text(data):
        raise BadInputError("not a log: most of it is not text")
    lines = lines_of(data)
    facts, errors = facts_of(lines), find_errors(lines)
    if not (is_servers(lines) or errors.found or facts.moe_missing or facts.moe_used):
        raise BadInputError("not a server's log: no line of vLLM, Docker, Ray or Python")
    ended = facts.dead or errors.stopped is not None
    if facts.up and not ended and not _fatal(errors.recognised()):
        return Explanation(STARTED, None, errors.found[-1].text if errors.found else "", facts)
    if not (errors.found or errors.noise or ended):
        return Explanation(STARTING, None, "", facts)
    kind, cause = judge(lines, None, served=facts.up)
    orderly = kind is FailureKind.STOPPED and facts.up and not errors.noise and not facts.dead
    return Explanation(STOPPED if orderly else FAILED, kind, cause, facts)


def _fatal(recognised: tuple[FailureKind, str] | None) -> bool:
    """Whether a server that had served ended by it, though no line says that it is dead."""
    fatal = {FailureKind.OUT_OF_MEMORY_AT_START, FailureKind.HANG, FailureKind.PORT_TAKEN}
    return recognised is not None and recognised[0] in fatal
