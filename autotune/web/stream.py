"""Streams that follow a job: server-sent events that can be resumed, and its log."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from autotune.store.records import ENDED
from autotune.web.folders import JobFolder, event_of, lines_from, size_of
from autotune.web.problems import ProblemError
from autotune.web.problems import response as response_of
from autotune.web.service import Service

LOOK_S = 0.5
PING_S = 15.0


class _Counted(StreamingResponse):
    """A stream that counts as open while it is sent, however it ends."""

    def __init__(self, service: Service, parts: AsyncIterator[Any], media_type: str) -> None:
        super().__init__(parts, media_type=media_type)
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._service.streams >= self._service.limits.streams:
            full = ProblemError(503, "too many streams are open", {"Retry-After": "10"})
            await response_of(full)(scope, receive, send)
            return
        self._service.streams += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.streams -= 1


def response(service: Service, parts: AsyncIterator[Any], media_type: str) -> Response:
    """Send parts as they come, if not too many streams are open."""
    return _Counted(service, parts, media_type)


def _message(kind: str, data: str, offset: int | None = None) -> str:
    head = "" if offset is None else f"id: {offset}\n"
    return f"{head}event: {kind}\ndata: {data}\n\n"


async def events(
    service: Service,
    job_id: int,
    offset: int,
    tail: int | None,
    is_welcome: Callable[[], bool] = lambda: True,
) -> AsyncIterator[str]:
    """Iterate over the events of a job, each with the offset behind it as its id.

    Between them stands the job itself whenever it has changed; ``end`` comes last.

    Args:
        service: the service.
        job_id: of a job that there is.
        offset: the id of the last event that was seen; 0 for all.
        tail: pass over all but about so many bytes of events.
        is_welcome: tells whether whoever reads may still do so.
    """
    path = JobFolder.of(service.root, job_id).events
    if tail is not None and offset == 0:
        offset = await run_in_threadpool(_tail, path, tail)
    seen, size, quiet = -1, -1, 0.0
    while not service.stopping and is_welcome():
        is_new = service.runner.versions[job_id] != seen
        found = await run_in_threadpool(service.snapshot, job_id) if is_new else None
        if is_new and found is None:
            yield _message("end", '"deleted"')
            return
        now = size_of(path)
        more = now not in {size, offset}
        while more:
            lines = await run_in_threadpool(list, lines_from(path, offset))
            for offset, line in lines:
                kind = str(event_of(line).get("event", "other"))
                yield _message(kind, line.decode("utf-8", "replace"), offset)
            more = bool(lines)
        size = now
        if found is not None:
            seen, job, shown = found
            yield _message("job", shown)
            if job.state in ENDED:
                yield _message("end", json.dumps(job.state))
                return
            quiet = 0.0
        elif quiet >= PING_S:
            yield ": still here\n\n"
            quiet = 0.0
        await asyncio.sleep(LOOK_S)
        quiet += LOOK_S


async def log(
    service: Service, job_id: int, offset: int, is_welcome: Callable[[], bool] = lambda: True
) -> AsyncIterator[bytes]:
    """Iterate over the log of a job from an offset on, until the job or the session has ended."""
    path = JobFolder.of(service.root, job_id).log
    while not service.stopping and is_welcome():
        job = await run_in_threadpool(service.jobs.get, job_id)
        data = await run_in_threadpool(read_from, path, offset, service.limits.log_chunk)
        if data:
            offset += len(data)
            yield data
            continue
        if job is None or job.state in ENDED:
            return
        await asyncio.sleep(LOOK_S)


def read_from(path: Path, offset: int, limit: int) -> bytes:
    """Read up to ``limit`` bytes of a file from an offset on; none if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(min(offset, file.seek(0, os.SEEK_END)))
            return file.read(limit)
    except OSError:
        return b""


def _tail(path: Path, size: int) -> int:
    """Give the start of a line about so many bytes before the end."""
    whole = size_of(path)
    if whole <= size:
        return 0
    data = read_from(path, whole - size, size)
    return whole - size + data.find(b"\n") + 1
