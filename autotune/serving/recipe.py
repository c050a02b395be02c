"""From a candidate to the flags of its server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.core import BadInputError, Candidate, Scalar
from autotune.engine.arguments import full_name, is_flag
from autotune.engine.variables import FOLDER
from autotune.serving.forecast.acceptance import Rates
from autotune.serving.server.capture import FLAG as CAPTURE_FLAG
from autotune.serving.server.moe_config import DEFAULT
from autotune.serving.server.server import ServeSettings

GAMMA = "gamma"
KV_DTYPE = "kv_cache_dtype"
UTILIZATION = "gpu_memory_utilization"
MOE_CONFIG = "moe_config"
"""A folder of tuned MoE files, or ``default``; no flag but an environment variable."""
CAPTURE = "capture_sizes"
"""The largest number of tokens with a CUDA graph of its own, or ``default``, vLLM's choice."""
DRAFTER_OPTION = "spec."
"""What the names of parameters begin with that are keys of ``--speculative-config``."""
VARIABLE = "env."
"""What the names of parameters begin with that are environment variables of the server."""
SCHEDULE = "schedule"
"""Ranges of vLLM's ``num_speculative_tokens_per_batch_size`` as JSON."""
LOCKED_OUT = "a server with a key would shut the tuner out; give the key where you serve for others"
_OURS = "is set by the tuner itself"
_TAKEN = {
    "--host": _OURS,
    "--port": _OURS,
    "--model": _OURS,
    "--speculative-config": _OURS,
    "--spec-method": _OURS,
    "--spec-model": _OURS,
    "--spec-tokens": _OURS,
    "--api-key": LOCKED_OUT,
    "--disable-log-stats": "acceptance and preemptions are read from what the server counts; give "
    "the flag where you serve for others",
}
"""Flags of ``vllm serve`` that nobody else may set, and why."""


def flag_of(name: str) -> str:
    """The flag of ``vllm serve`` that a parameter stands for."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Recipe:
    """What all servers of a study share.

    Attributes:
        target: the model served.
        method: vLLM's method of speculation; ``none`` where nothing is ever drafted.
        drafter: the drafter's model; None where the method needs none.
        synthetic: acceptance by position that vLLM's rejection sampler is told to produce instead
            of comparing tokens; empty compares them.
        server_args: further arguments of ``vllm serve``.
        env: environment variables of the server.
        moe_files: digest of the tuned MoE files that it is given; None without them.
        captured: gammas whose decoding batches have CUDA graphs in every server that speculates,
            where ours are the sizes: then the dialled server's are those of all, and what vLLM
            compiled for it serves the others (the sizes are in the key of its cache).
    """

    target: str
    method: str
    drafter: str | None = None
    synthetic: Rates = ()
    server_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    moe_files: str | None = None
    captured: tuple[int, ...] = ()

    def speculative(
        self,
        gamma: int,
        schedule: str | None = None,
        options: Mapping[str, Scalar] | None = None,
    ) -> dict[str, Any] | None:
        """The value of ``--speculative-config``; None at gamma 0.

        Args:
            gamma: tokens to draft.
            schedule: gamma by batch size, as JSON.
            options: further keys; a text that is JSON stands for its value.
        """
        if gamma == 0:
            return None
        config: dict[str, Any] = {"method": self.method, "num_speculative_tokens": gamma}
        config |= {key: _json_value(value) for key, value in (options or {}).items()}
        if self.drafter is not None:
            config["model"] = self.drafter
        if schedule is not None:
            config["num_speculative_tokens_per_batch_size"] = json.loads(schedule)
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
        schedule, tuned = params.pop(SCHEDULE, None), params.pop(MOE_CONFIG, DEFAULT)
        capture = params.pop(CAPTURE, DEFAULT)
        options, variables = _taken_out(params, DRAFTER_OPTION), _taken_out(params, VARIABLE)
        more = [arg for name, value in params.items() for arg in _argument(name, value)]
        env = {**self.env, **{name: str(value) for name, value in variables.items()}}
        return ServeSettings(
            self.target,
            self.speculative(gamma, None if schedule is None else str(schedule), options),
            kv_cache_dtype=None if dtype is None else str(dtype),
            gpu_memory_utilization=None if share is None else float(share),
            extra_args=(*more, *self.server_args),
            env=env if tuned == DEFAULT else {**env, FOLDER: str(tuned)},
            capture=None if capture == DEFAULT else int(capture),
            captured=self.captured if gamma else (),
        )

    def as_json(self) -> dict[str, Any]:
        """Everything that two trials must share to be compared.

        Of the MoE files their contents as well: a folder keeps its name when it is tuned again.
        """
        some = {"moe_files": self.moe_files, "captured": list(self.captured)}
        return {name: value for name, value in some.items() if value} | {
            "target": self.target,
            "method": self.method,
            "drafter": self.drafter,
            "synthetic": list(self.synthetic),
            "server_args": list(self.server_args),
            "env": dict(sorted(self.env.items())),
        }


def _taken_out(params: dict[str, Scalar], prefix: str) -> dict[str, Scalar]:
    """Take the parameters out whose names begin so, by the rest of their names."""
    found = {name for name in params if name.startswith(prefix)}
    return {name.removeprefix(prefix): params.pop(name) for name in sorted(found)}


def _json_value(value: Scalar) -> Any:
    """A value as JSON has it: ``4`` is a number and ``true`` a truth; other text stays text."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if isinstance(found, int | float | bool) else value


def _argument(name: str, value: Scalar) -> list[str]:
    if value is True:
        return [flag_of(name)]
    if value is False:
        return [flag_of(f"no-{name}")]
    return [flag_of(name), str(value)]


def taken(arg: str) -> str | None:
    """Why nobody but the tuner may give this flag of ``vllm serve``; None where anybody may."""
    return next((why for flag, why in _TAKEN.items() if is_flag(arg, flag)), None)


def check_server_args(args: Sequence[str], parameters: Sequence[str]) -> None:
    """What the user gives for all servers comes last and wins, so it must not be searched.

    Raises:
        BadInputError: a flag that we set ourselves, or that the space varies.
    """
    searched = {CAPTURE_FLAG if name == CAPTURE else flag_of(name): name for name in parameters}
    for arg in args:
        name = full_name(arg)
        why = taken(arg)
        if why is not None:
            raise BadInputError(f"--server-arg {name}: {why}")
        if name in searched:
            raise BadInputError(
                f"--server-arg {name}: is searched as {searched[name]}; give it once"
            )


def without_schedule(candidate: Candidate) -> Candidate:
    """The same setting without :data:`SCHEDULE`."""
    return Candidate.of({n: v for n, v in candidate.params.items() if n != SCHEDULE})
