"""The service under load: queued jobs, open event streams, and a steady rate of requests.

``python -m benchmarks.service_load --out benchmarks/results/service-load.json`` starts a service
of its own, whose jobs are made up (tests/support/synthetic_service.py) and run meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from autotune.machine.environment import environment
from tests.web.served import Served


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def stream(session: aiohttp.ClientSession, url: str, seen: list[int]) -> None:
    async with session.get(url) as answer:
        assert answer.status == 200, await answer.text()
        seen[0] += 1
        async for line in answer.content:
            seen[1] += line.startswith(b"event:")


async def load(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    head = {"Authorization": f"Bearer {served.token}"}
    limit = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    base = f"{served.url}/api/v1"
    process = psutil.Process(served.process.pid)
    times: list[float] = []
    failures: list[str] = []
    memory: list[int] = []
    seen = [0, 0]
    async with aiohttp.ClientSession(headers=head, connector=limit, timeout=timeout) as session:
        begun = time.perf_counter()
        for number in range(options.jobs):
            args = {"device": "gb10", "study": f"s{number}"}
            async with session.post(f"{base}/jobs", json={"kind": "moe", "args": args}) as answer:
                assert answer.status == 202, await answer.text()
        queued_s = time.perf_counter() - begun
        # Half of the streams follow jobs that run soon, half wait for one far behind.
        streams = [
            asyncio.create_task(
                stream(session, f"{base}/jobs/{1 + n if n % 2 else options.jobs - n}/events", seen)
            )
            for n in range(options.streams)
        ]
        await asyncio.sleep(3)
        opened = seen[0]

        async def ask() -> None:
            begin = time.perf_counter()
            try:
                async with session.get(f"{base}/jobs") as answer:
                    await answer.read()
                    if answer.status != 200:
                        failures.append(str(answer.status))
            except aiohttp.ClientError as error:
                failures.append(repr(error))
            times.append(time.perf_counter() - begin)

        asked = []
        start = time.perf_counter()
        for number in range(options.seconds * options.rate):
            await asyncio.sleep(max(0.0, start + number / options.rate - time.perf_counter()))
            asked.append(asyncio.create_task(ask()))
            if number % options.rate == 0:
                memory.append(process.memory_info().rss)
        await asyncio.gather(*asked)
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        async with session.get(f"{base}/jobs?state=SUCCEEDED&limit=200") as answer:
            done = len((await answer.json())["jobs"])
    milliseconds = [1000 * value for value in times]
    return {
        "jobs": options.jobs,
        "streams": {"wanted": options.streams, "opened": opened, "events": seen[1]},
        "requests": len(times),
        "failures": failures,
        "requests_a_second": options.rate,
        "seconds": options.seconds,
        "get_jobs_ms": {
            "median": round(statistics.median(milliseconds), 1),
            "p99": round(percentile(milliseconds, 0.99), 1),
            "max": round(max(milliseconds), 1),
        },
        "post_jobs_ms_mean": round(1000 * queued_s / options.jobs, 1),
        "jobs_done_meanwhile": done,
        "memory_mib": {
            "first": memory[0] >> 20,
            "last": memory[-1] >> 20,
            "most": max(memory) >> 20,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before = psutil.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        served = Served(root)
        try:
            found = asyncio.run(load(served, options))
        finally:
            served.stop()
    found["environment"] = environment() | {"processor": platform.processor()}
    found["load_average"] = {"before": before, "after": psutil.getloadavg()}
    text = json.dumps(found, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
