"""A scripted server in OpenAI's format, for times and faults that are known exactly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from aiohttp import web

Script = Callable[[web.StreamResponse, dict[str, Any]], Awaitable[None]]


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def chat(text: str, **more: Any) -> bytes:
    return event({"choices": [{"delta": {"content": text}, **more}]})


def usage(tokens: int, prompt: int = 5) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}})


DONE = b"data: [DONE]\n\n"


class SseServer:
    """Answers every POST by the script; keeps the bodies and how many were in flight at once."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.metrics = ""
        self.flying = self.most_flying = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.paths.append(request.path)
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            await self.script(response, body)
        finally:
            self.flying -= 1
        return response

    async def tell(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics)


@contextmanager
def serving(script: Script) -> Iterator[SseServer]:
    """The server on a free port, in a thread of its own."""
    server, loop = SseServer(script), asyncio.new_event_loop()
    application = web.Application()
    application.router.add_post("/{tail:.*}", server.answer)
    application.router.add_get("/metrics", server.tell)
    application.router.add_get("/health", server.tell)
    runner = web.AppRunner(application, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def three_tokens(response: web.StreamResponse, _: dict[str, Any]) -> None:
    """Role at once with the first token, two more after pauses, four tokens counted."""
    await asyncio.sleep(0.1)
    await response.write(event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}))
    await response.write(chat("a"))
    await asyncio.sleep(0.05)
    await response.write(b": ping\n\n" + chat("é"))
    await asyncio.sleep(0.05)
    await response.write(chat("c", finish_reason="length"))
    await asyncio.sleep(0.1)  # what comes after the last token is not the answer's time
    await response.write(usage(4) + DONE)


METRICS = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 5.0
# TYPE vllm:spec_decode_num_drafts_created gauge
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.79e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 30.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 13.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 4.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 9.0
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:generation_tokens_total{engine="0",model_name="m"} 123.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 45.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0
vllm:cache_config_info{engine="0",cache_dtype="fp8",kv_cache_size_tokens="524288"} 1.0
process_cpu_seconds_total 7.5
"""
