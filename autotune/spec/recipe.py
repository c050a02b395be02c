"""From a candidate to the flags of its server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.core import BadInputError, Candidate, Scalar
from autotune.spec.acceptance import Rates
from autotune.spec.server import ServeSettings

GAMMA = "gamma"
KV_DTYPE = "kv_cache_dtype"
UTILIZATION = "gpu_memory_utilization"
OURS = frozenset({"--host", "--port", "--speculative-config", "--model"})
"""Flags of ``vllm serve`` that are ours to set."""


def flag_of(name: str) -> str:
    """The flag of ``vllm serve`` that a parameter stands for."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Recipe:
    """What all servers of a study share.

    Attributes:
        target: the model served.
        method: vLLM's method of speculation.
        drafter: the drafter's model; None where the method needs none.
        synthetic: acceptance by position that vLLM's rejection sampler is told to produce instead
            of comparing tokens; empty compares them.
        server_args: further arguments of ``vllm serve``.
        env: environment variables of the server.
    """

    target: str
    method: str
    drafter: str | None = None
    synthetic: Rates = ()
    server_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def speculative(self, gamma: int) -> dict[str, Any] | None:
        """The value of ``--speculative-config``; None at gamma 0."""
        if gamma == 0:
            return None
        config: dict[str, Any] = {"method": self.method, "num_speculative_tokens": gamma}
        if self.drafter is not None:
            config["model"] = self.drafter
        if self.synthetic:
            config["rejection_sample_method"] = "synthetic"
            config["synthetic_acceptance_rates"] = list(self.synthetic[:gamma])
        return config

    def settings(self, candidate: Candidate) -> ServeSettings:
        """What the candidate's server is started with."""
        params = dict(candidate.params)
        gamma = candidate.int(GAMMA)
        del params[GAMMA]
        dtype, share = params.pop(KV_DTYPE, None), params.pop(UTILIZATION, None)
        more = [arg for name, value in params.items() for arg in _argument(name, value)]
        return ServeSettings(
            self.target,
            self.speculative(gamma),
            kv_cache_dtype=None if dtype is None else str(dtype),
            gpu_memory_utilization=None if share is None else float(share),
            extra_args=(*more, *self.server_args),
            env=self.env,
        )

    def as_json(self) -> dict[str, Any]:
        """Everything that two trials must share to be compared."""
        return {
            "target": self.target,
            "method": self.method,
            "drafter": self.drafter,
            "synthetic": list(self.synthetic),
            "server_args": list(self.server_args),
            "env": dict(sorted(self.env.items())),
        }


def _argument(name: str, value: Scalar) -> list[str]:
    if value is True:
        return [flag_of(name)]
    if value is False:
        return [flag_of(f"no-{name}")]
    return [flag_of(name), str(value)]


def check_server_args(args: Sequence[str], parameters: Sequence[str]) -> None:
    """What the user gives for all servers comes last and wins, so it must not be searched.

    Raises:
        BadInputError: a flag that we set ourselves, or that the space varies.
    """
    given = {arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")}
    taken = {flag_of(name): name for name in parameters}
    for flag in sorted(given):
        if flag in OURS:
            raise BadInputError(f"--server-arg {flag}: is set by the tuner itself")
        if flag in taken:
            raise BadInputError(f"--server-arg {flag}: is searched as {taken[flag]}; give it once")


def argument_value(args: Sequence[str], flag: str) -> str | None:
    """The last value of ``flag``, given as ``--flag value`` or ``--flag=value``; None without."""
    found = None
    for index, arg in enumerate(args):
        if arg == flag and index + 1 < len(args):
            found = args[index + 1]
        elif arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found
