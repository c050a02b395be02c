"""A load on an OpenAI-compatible server: so many requests in flight at all times, timed.

While requests run, arriving bytes are only stamped with the time; they are decoded when the load is
over. So the client costs little of a processor and its own work does not show in the times.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autotune.serving.measure.prompts import Prompt
from autotune.serving.measure.timing import LoadResult, RequestRecord
from autotune.serving.server import web
from autotune.serving.server.web import without_secrets
from autotune.util import edge, secret

_ERROR_CHARS = 300
_STREAM_BYTES = 1 << 20
"""An answer may have so many, and further :data:`_TOKEN_BYTES` for each token asked for."""
_TOKEN_BYTES = 2 << 10
"""vLLM's event of a token has some 250."""
_FINISH_CHARS = 80
_EVENTS = 1000
"""An answer may have so many events, and four further ones for each token asked for."""


@dataclass(frozen=True)
class Load:
    """What is asked of the server. Sampling is greedy.

    Attributes:
        url: the server's, without a slash at the end.
        model: the name that it serves under.
        prompts: taken in turn, from the first again when they are used up.
        requests: how many in all.
        concurrency: how many at once: as one is answered, the next is sent.
        max_tokens: output tokens of a request at most.
        ignore_eos: whether to generate ``max_tokens`` in any case.
        chat: ``/v1/chat/completions``, where the server applies its chat template; else
            ``/v1/completions``.
        timeout_s: wall seconds that a request may take.
        cache_salt: if given, no request finds its prompt in the server's prefix cache: vLLM's
            ``cache_salt`` becomes this text and the request's number.
        extra: further fields of the requests.
        headers: further HTTP headers, such as ``Authorization``.

    Raises:
        ValueError: a count below 1, or no prompts.
    """

    url: str
    model: str
    prompts: Sequence[Prompt]
    requests: int
    concurrency: int
    max_tokens: int
    ignore_eos: bool = True
    chat: bool = True
    timeout_s: float = 600.0
    cache_salt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if min(self.requests, self.concurrency, self.max_tokens) < 1 or not self.prompts:
            raise ValueError("a load needs prompts and at least one request, lane and token")

    def endpoint(self) -> str:
        """The URL that requests go to."""
        return f"{self.url}/v1/{'chat/completions' if self.chat else 'completions'}"

    def payload(self, index: int) -> dict[str, Any]:
        """The body of request number ``index``."""
        prompt = self.prompts[index % len(self.prompts)]
        body: dict[str, Any] = {"model": self.model, "temperature": 0.0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self.chat:
            body |= {"messages": prompt.as_messages(), "max_completion_tokens": self.max_tokens}
        else:
            body |= {"prompt": prompt.text, "max_tokens": self.max_tokens}
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.cache_salt is not None:
            body["cache_salt"] = f"{self.cache_salt}-{index}"
        return body | dict(self.extra)


@dataclass
class Stream:
    """What arrived for a request: server-sent events and when, in seconds of the clock."""

    index: int
    start: float = 0.0
    events: list[tuple[float, bytes]] = field(default_factory=list)
    error: str = ""


class _Events:
    """The events of a growing stream, cut at their blank lines in one pass over its bytes."""

    def __init__(self, load: Load) -> None:
        self._bytes = _STREAM_BYTES + _TOKEN_BYTES * load.max_tokens
        self._events = _EVENTS + 4 * load.max_tokens
        self._rest = bytearray()

    def take(self, chunk: bytes) -> list[bytes]:
        """Add bytes; gives the events that they complete.

        Raises:
            TooLargeError: the stream is longer than an answer can be.
        """
        self._bytes -= len(chunk)
        if self._bytes < 0:
            raise web.TooLargeError("its answer is longer than so many tokens can be")
        seen = max(len(self._rest) - 1, 0)
        self._rest += chunk
        if self._rest.find(b"\n\n", seen) < 0:
            return []
        *whole, rest = bytes(self._rest).split(b"\n\n")
        self._rest = bytearray(rest)
        events = [event for event in whole if event]
        self._events -= len(events)
        if self._events < 0:
            raise web.TooLargeError("its answer has more events than so many tokens can have")
        return events


async def _receive(session: web.Session, load: Load, stream: Stream) -> None:
    """Send one request and take in its answer."""
    body = json.dumps(load.payload(stream.index)).encode()
    stream.start = time.perf_counter()
    try:
        async with web.request(session, "POST", load.endpoint(), body) as response:
            if response.status != 200:
                text = await web.read_body(response, web.ERROR_LIMIT, cut=True)
                text = without_secrets(" ".join(text.split()), load.headers)
                stream.error = web.refusal(response, text)[:_ERROR_CHARS]
                return
            events = _Events(load)
            async for chunk in response.content.iter_any():
                now = time.perf_counter()
                stream.events.extend((now, event) for event in events.take(chunk))
    except TimeoutError:
        stream.error = f"no full answer within {load.timeout_s:g} s"
    except web.FAULTS as error:
        stream.error = web.described(error, load.headers)[:_ERROR_CHARS]


def _payloads(events: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, Any]]:
    """The JSON values of server-sent events with their times; True stands for the end mark.

    Raises:
        ValueError: an event is not JSON.
    """
    for when, event in events:
        for line in event.split(b"\n"):
            name, _, value = line.partition(b":")
            if name == b"data":
                yield when, True if value.strip() == b"[DONE]" else edge.parse_json(value)


def _piece(choice: Mapping[str, Any]) -> str:
    """The text that a chunk adds; what a model "thinks" is generated text as well.

    Raises:
        TypeError: it is something else.
    """
    delta = choice.get("delta")
    if delta is None:
        return "" + (choice.get("text") or "")
    thought = delta.get("reasoning") or delta.get("reasoning_content") or ""
    return "" + thought + (delta.get("content") or "")


class _Ids:
    """The ids of the prompt's and the text's tokens, which vLLM sends with ``return_token_ids``."""

    def __init__(self) -> None:
        self.prompt: list[int] = []
        self.text: list[int] = []

    def take(self, data: Mapping[str, Any]) -> None:
        """Add those of a chunk; the prompt's are in its choice, or for a chat beside it.

        Raises:
            TypeError, ValueError: they are no ids.
        """
        choice = data["choices"][0]
        prompt = choice.get("prompt_token_ids") or data.get("prompt_token_ids") or ()
        self.prompt += [edge.whole(token, "prompt_token_ids") for token in prompt]
        self.text += [edge.whole(token, "token_ids") for token in choice.get("token_ids") or ()]


def _decode(stream: Stream, origin: float) -> RequestRecord:
    """What the events of a request say.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: not what OpenAI's API sends.
    """
    times: list[float] = []
    pieces: list[str] = []
    ids = _Ids()
    usage: Mapping[str, Any] = {}
    finish, done = "", False
    for when, data in _payloads(stream.events):
        if data is True:
            done = True
        elif "error" in data:
            return _failed(stream, origin, f"in the stream: {json.dumps(data['error'])}")
        elif data.get("choices"):
            times.append(when)
            pieces.append(_piece(data["choices"][0]))
            ids.take(data)
            finish = data["choices"][0].get("finish_reason") or finish
            edge.text(finish, "finish_reason", _FINISH_CHARS)
        usage = usage if data is True else data.get("usage") or usage
    if not done or not times:
        return _failed(stream, origin, "the stream broke off")
    if "completion_tokens" not in usage:
        return _failed(stream, origin, "the server does not count its tokens (no usage)")
    return RequestRecord(
        start_s=stream.start - origin,
        ttft_s=times[0] - stream.start,
        itl_s=tuple(later - earlier for earlier, later in itertools.pairwise(times)),
        latency_s=times[-1] - stream.start,
        prompt_tokens=edge.whole(usage.get("prompt_tokens", 0), "prompt_tokens"),
        output_tokens=edge.whole(usage["completion_tokens"], "completion_tokens"),
        text="".join(pieces),
        tokens=tuple(ids.text),
        prompt_ids=tuple(ids.prompt),
        finish=finish,
    )


def _failed(stream: Stream, origin: float, error: str) -> RequestRecord:
    return RequestRecord(stream.start - origin, error=error)


def decode_stream(stream: Stream, origin: float) -> RequestRecord:
    """The record of a request whose answer has arrived; ``origin`` is when the load began."""
    if stream.error:
        return _failed(stream, origin, stream.error)
    try:
        return _decode(stream, origin)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return _failed(stream, origin, f"not OpenAI's format: {error}")


async def run_load_async(load: Load) -> LoadResult:
    """Send the requests, ``concurrency`` at a time, and wait for all answers.

    A request that fails is a record with an ``error``. Nothing is sent twice, and nothing more once
    one has failed: a server that hangs would cost the time limit again for each.
    """
    streams: list[Stream] = []
    headers = {"Content-Type": "application/json", **load.headers}

    async def lane(session: web.Session) -> None:
        while len(streams) < load.requests and not any(stream.error for stream in streams):
            stream = Stream(len(streams))
            streams.append(stream)
            await _receive(session, load, stream)

    async with web.open_session(load.timeout_s, headers, load.concurrency) as session:
        origin, cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as lanes:
            for _ in range(min(load.concurrency, load.requests)):
                lanes.create_task(lane(session))
        duration_s, cpu_s = time.perf_counter() - origin, time.process_time() - cpu
    mask = secret.Mask(secret.of_headers(load.headers))
    records = tuple(_written(decode_stream(stream, origin), mask) for stream in streams)
    return LoadResult(records, load.concurrency, duration_s, cpu_s)


def _written(record: RequestRecord, mask: secret.Mask) -> RequestRecord:
    """The record without what a server repeats of its credentials; masked first, then cut."""
    error = mask(record.error)[:_ERROR_CHARS]
    return replace(record, error=error, text=mask(record.text), finish=mask(record.finish))


def run_load(load: Load) -> LoadResult:
    """As :func:`run_load_async`, from code that is not asynchronous."""
    return asyncio.run(run_load_async(load))
