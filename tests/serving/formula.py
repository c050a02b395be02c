"""The arithmetic of a server of known speed and acceptance, which fails on cue; standard library.

``fake_serving.py`` serves it over HTTP and sleeps; ``tests/support/formula_measurer.py`` runs it in
virtual time. What is given: ``base_ms`` and ``draft_ms`` (time of a step and of a drafted token),
``crowd_ms`` (of a drafted token for every other request), ``reached`` (acceptance by position),
``fast`` (factors on the time by ``flag=value``), ``no_schedule`` (refuse one), and lists of gammas:
``oom`` at the start, unless the file ``well`` is there, ``dies`` under load, ``other_text``,
``refuses`` requests; ``oom_beside`` and ``dies_beside`` where its cache has a size in bytes.
``oom_at`` is the number of the one start that fails, by gamma (needs ``boots``); ``right_text`` a
``flag=value`` with which no text is another. ``says`` are lines of the log; ``tuned`` the factor of
a server that finds a tuned MoE file; ``dialled`` that of one whose gamma a dial turns, which one of
``no_dial`` does not know; ``memory`` gives the KV cache's ``tokens`` a hundredth of memory
utilization from ``start`` on: more in flight are preempted; above ``dies`` a long prompt ends the
server. ``late`` happens from the answer ``after`` on: ``accepts`` and ``slower`` are factors,
``empty`` and ``repeats`` say what is answered, ``grows`` is in bytes an answer, ``ends`` ends the
server. ``kinds`` gives the acceptance by a word of
the prompt, and ``long_ms`` what a step takes for each 1000 tokens of it; a token has 4 letters.
``boots`` is a file that gets a line for every start. Token k of an answer is the word
``k``; of a text that is judged its id is ``k``, where ``corrupt`` does not name the gamma and the
place from which on ids are wrong, and ``ties`` those where one is about as good. ``corrupt_boot``
is without the dial only, and ``unscored`` refuses to score.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DIAL = "AUTOTUNE_GAMMA_DIAL"
USUAL: dict[str, Any] = {"base_ms": 3.0, "draft_ms": 0.3, "reached": [0.8, 0.6, 0.4, 0.2, 0.1, 0.0]}


TIE, WRONG = 1000, 2000
"""Added to the id of a token that is nearly the best, and of one that is not."""


class EndError(Exception):
    """The server's process ends with ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class RefusalError(Exception):
    """The server answers a request with status 400 and the text ``no``."""


class Counters:
    """What ``/metrics`` tells."""

    def __init__(self, gamma: int, schedule: list[list[int]]) -> None:
        self.lock, self.gamma, self.schedule = threading.Lock(), gamma, schedule
        self.running = self.in_flight = self.preemptions = self.answers = 0
        self.capacity = 4096
        self.drafts = self.draft_tokens = self.generated = self.steps = 0
        self.accepted = [0] * gamma
        self.dial: Path | None = None
        """Holds the byte that says gamma, where there is one."""

    def drafted(self) -> int:
        """Tokens drafted at the present batch size."""
        if self.dial is not None:
            return min(self.dial.read_bytes()[0], self.gamma)
        fitting = [g for low, high, g in self.schedule if low <= self.running <= high]
        return fitting[0] if fitting else self.gamma

    def step(self, rates: list[float], gamma: int) -> int:
        """Tokens of the next step; accepted drafts follow the rates exactly in the long run."""
        with self.lock:
            self.steps += 1
            share = self.steps * 0.6180339887 % 1
            taken = sum(share < rate for rate in rates[:gamma])
            self.drafts += gamma > 0
            self.draft_tokens += gamma
            for position in range(taken):
                self.accepted[position] += 1
            return 1 + taken

    def text(self) -> str:
        name = "vllm:spec_decode_num"
        lines = [
            f"vllm:generation_tokens_total {self.generated}",
            f'vllm:cache_config_info{{kv_cache_size_tokens="{self.capacity}"}} 1.0',
            f"vllm:num_preemptions_total {self.preemptions}",
        ]
        if self.gamma:
            lines += [
                f"{name}_drafts_total {self.drafts}",
                f"{name}_draft_tokens_total {self.draft_tokens}",
                f"{name}_accepted_tokens_total {sum(self.accepted)}",
            ]
            lines += [
                f'{name}_accepted_tokens_per_pos_total{{position="{i}"}} {count}'
                for i, count in enumerate(self.accepted)
            ]
        return "\n".join(lines) + "\n"


class Formula:
    """One server: its start and its answers.

    Args:
        given: what it is like; see the module.
        args: ``serve`` and the arguments that follow.
        env: its environment.
        say: takes a line of its log.
    """

    context = 1024

    def __init__(
        self,
        given: Mapping[str, Any],
        args: Sequence[str],
        env: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self.given: dict[str, Any] = {**USUAL, **given}
        self.args, self.env, self.say, self.factor = args, env, say, 1.0
        config = json.loads(self.argument("--speculative-config", "{}"))
        self.gamma: int = config.get("num_speculative_tokens", 0)
        self.schedule = config.get("num_speculative_tokens_per_batch_size", [])
        self.counters = Counters(self.gamma, self.schedule)

    @property
    def model(self) -> str:
        return self.args[1]

    def argument(self, name: str, default: str) -> str:
        return self.args[self.args.index(name) + 1] if name in self.args else default

    def share(self) -> float:
        """The memory utilization."""
        return float(self.argument("--gpu-memory-utilization", "0.9"))

    # ------------------------------------------------------------------------- the start

    def boot(self) -> None:
        """Start, or end in one of the ways that are given.

        Raises:
            EndError: it does not serve.
        """
        given, gamma = self.given, self.gamma
        for line in given.get("says", ()):
            self.say(line)
        if "boots" in given:
            self._count_boot()
        self.begin()
        if self.argument("--kv-cache-dtype", "auto") == "banana":
            self.say("vllm serve: error: argument --kv-cache-dtype: invalid choice: 'banana'")
            raise EndError(2)
        if (gamma in given.get("oom", ()) and self.is_ill()) or self.model in given.get(
            "oom_targets", ()
        ):
            self.say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
            raise EndError(1)
        if self.has_own_cache() and gamma in given.get("oom_beside", ()):
            self.say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB.")
            raise EndError(1)
        if self.schedule and given.get("no_schedule"):
            self.say(
                "TypeError: unexpected keyword argument 'num_speculative_tokens_per_batch_size'"
            )
            raise EndError(1)
        if "memory" in given:
            kept = given["memory"]["tokens"] * round(100 * self.share() - given["memory"]["start"])
            if kept <= 0:
                self.say("ValueError: No available memory for the cache blocks.")
                raise EndError(1)
            self.counters.capacity = kept
        if self.schedule and DIAL in self.env and not given.get("no_dial"):
            self.counters.dial = Path(self.env[DIAL])
            self.say("autotune: the gamma dial is in place")
            self.factor *= given.get("dialled", 1.0)
        self._set_pace()

    def has_own_cache(self) -> bool:
        """Whether its cache has a size in bytes, as where others are up beside it."""
        return "--kv-cache-memory-bytes" in self.args

    def begin(self) -> None:
        """Take what a process takes when it starts."""

    def is_ill(self) -> bool:
        """Whether what fails until somebody mends it still does."""
        return not Path(self.given.get("well", "/nowhere")).exists()

    def _count_boot(self) -> None:
        """Note the start; the one of this gamma that is to fail does."""
        gamma, path = self.gamma, Path(self.given["boots"])
        with path.open("a") as file:
            file.write(" ".join(self.args) + "\n")
        like = f'"num_speculative_tokens": {gamma}' if gamma else ""
        lines = path.read_text().splitlines()
        same = [line for line in lines if (like in line if like else "speculative" not in line)]
        if len(same) == self.given.get("oom_at", {}).get(str(gamma)):
            self.given["oom"] = [gamma]

    def _set_pace(self) -> None:
        """By the flags, and by the tuned MoE file, which is looked for as vLLM does."""
        for setting, factor in self.given.get("fast", {}).items():
            flag, _, value = setting.partition("=")
            if self.argument(flag, "") == value:
                self.factor *= factor
        if "tuned" not in self.given:
            return
        name = "E=8,N=32,device_name=X.json"
        folder = self.env.get("VLLM_TUNED_CONFIG_FOLDER")
        if folder and (Path(folder) / name).exists():
            self.say(
                f"INFO [fused_moe.py:1] Using configuration from {folder}/{name} for MoE layer."
            )
            self.factor *= self.given["tuned"]
        else:
            self.say(
                "WARNING [fused_moe.py:1] Using default MoE config. Performance might be "
                f"sub-optimal! Config file not found at /vllm/configs/{name}"
            )

    # ----------------------------------------------------------------------- the answers

    def answer(self, body: Mapping[str, Any]) -> Iterator[float | str]:
        """Yield by turns the seconds of a step and the text that it gives.

        Raises:
            EndError: the server dies of it.
            RefusalError: it is not answered.
        """
        given, counters = self.given, self.counters
        gamma = counters.drafted() if counters.dial is not None else self.gamma
        dies = given.get("dies_beside", ()) if self.has_own_cache() else given.get("dies", ())
        if gamma in dies:
            self.say(
                "(EngineCore pid=7) ERROR 01-01 10:00:00 [core.py:1] torch.OutOfMemoryError: boom"
            )
            raise EndError(0)
        if gamma in given.get("refuses", ()):
            raise RefusalError
        wanted = wanted_of(body)
        flag, _, value = given.get("right_text", "").partition("=")
        other = gamma in given.get("other_text", ()) and not (
            flag and self.argument(flag, "") == value
        )
        done, word, length = 0, "other " if other else "", prompt_tokens(body)
        kinds = given.get("kinds", {})
        reached = next((kinds[k] for k in kinds if k in asked_of(body)), given["reached"])
        counters.answers += 1
        late = self.late()
        if late.get("ends"):
            self.say("(EngineCore pid=7) ERROR 01-01 10:00:00 [core.py:1] RuntimeError: late")
            raise EndError(0)
        prompt = body.get("prompt", "")
        tokens = wanted + len(prompt) if isinstance(prompt, list) else 0
        if tokens and self.share() > given.get("memory", {}).get("dies", 1.0):
            self.say(
                "(EngineCore pid=7) ERROR 01-01 10:00:00 [core.py:1] torch.OutOfMemoryError: long"
            )
            raise EndError(0)
        with counters.lock:
            counters.running += 1
            counters.in_flight += tokens
            counters.preemptions += counters.in_flight > counters.capacity
        while done < wanted:
            drafted = counters.drafted()
            yield self._step_s(drafted, length) * late.get("slower", 1.0)
            left = wanted - done
            rates = [late.get("accepts", 1.0) * rate for rate in reached]
            count = 1 if done == 0 else min(counters.step(rates, drafted), left)
            said = [f"{word}{0 if late.get('repeats') else done + i} " for i in range(count)]
            yield "" if late.get("empty") else "".join(said)
            done += count
        with counters.lock:
            counters.running -= 1
            counters.in_flight -= tokens
            counters.generated += wanted

    def tokens(self, wanted: int) -> list[int]:
        """The ids of a text at the present gamma."""
        gamma = str(self.counters.drafted() if self.counters.dial is not None else self.gamma)
        found = {**self.given.get("corrupt", {})}
        if self.counters.dial is None:
            found |= self.given.get("corrupt_boot", {})
        wrong = found.get(gamma, wanted)
        tie = self.given.get("ties", {}).get(gamma, wanted)
        return [k + (WRONG if k >= wrong else TIE if k == tie else 0) for k in range(wanted)]

    def late(self) -> dict[str, Any]:
        """What happens by now."""
        late: dict[str, Any] = self.given.get("late", {"after": 0})
        return late if self.counters.answers > late["after"] else {}

    def memory(self) -> int:
        """Bytes that its processes hold."""
        late = self.given.get("late", {})
        beyond: int = max(0, self.counters.answers - late.get("after", 0))
        return 2**30 + int(late.get("grows", 0)) * beyond

    def _step_s(self, drafted: int, length: int) -> float:
        others, given = self.counters.running - 1, self.given
        drafting = given["draft_ms"] + given.get("crowd_ms", 0.0) * others
        reading = given.get("long_ms", 0.0) * length / 1000
        return float((given["base_ms"] + reading + drafted * drafting) * self.factor / 1e3)


def place_of(token: int, place: int) -> dict[str, dict[str, float]] | None:
    """vLLM's ``prompt_logprobs`` of a token: the place's own number is best."""
    if place < 0:
        return None
    known = {place: -0.1, place + TIE: -0.2, place + WRONG: -9.0}
    return {str(name): {"logprob": value} for name, value in {token: -9.0, **known}.items()}


def asked_of(body: Mapping[str, Any]) -> str:
    """The text of a request."""
    prompt = body.get("prompt", "")
    said = [message["content"] for message in body.get("messages", ())]
    return " ".join(said) if said else prompt if isinstance(prompt, str) else ""


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """What the server counts of a prompt: four letters a token, and its template."""
    return 3 + len(asked_of(body)) // 4


def wanted_of(body: Mapping[str, Any]) -> int:
    """The tokens that a request asks for."""
    return int(body.get("max_completion_tokens") or body["max_tokens"])
