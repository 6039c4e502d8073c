"""The query engine beside the least that could ask the same: ``python benchmarks/query_engine.py``.

A stub on loopback answers after 20 ms and fails 5 % of the calls (429 with Retry-After: 0, or 500). The floor is bare
aiohttp with a semaphore that asks again until it has an answer and remembers nothing. The engine has its journal
(durable before it counts), its retries and its outcomes. Both share the machine with the stub, runs are interleaved,
medians are printed. Then a run is killed with SIGKILL halfway and repeated, and the stub's calls are counted.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from proxykd.config.sampling import SamplingSpec
from proxykd.records import Message, Prompt
from proxykd.teacher.endpoint import Endpoint
from proxykd.teacher.engine import Engine
from proxykd.teacher.journal import Journal
from proxykd.teacher.providers.base import build_request
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import Request
from proxykd.teacher.retry import RetryPolicy
from proxykd.teacher.transport import AiohttpTransport

MAX_LIFE_S = 300.0
_ANSWER = {
    "model": "stub",
    "choices": [
        {"message": {"role": "assistant", "content": "An answer of some length. " * 8}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 60},
}


async def serve_stub(*, latency_s: float, fault_rate: float) -> None:
    """Serve until killed or ``MAX_LIFE_S`` are over; prints the port; GET /stats tells calls and answers."""
    counts, rng, answer = {"calls": 0, "answers": 0}, random.Random(0), json.dumps(_ANSWER)

    async def complete(request: web.Request) -> web.Response:
        counts["calls"] += 1
        await request.read()
        await asyncio.sleep(latency_s)
        if (draw := rng.random()) < fault_rate:
            status = 429 if draw < fault_rate / 2 else 500
            return web.Response(status=status, headers={"Retry-After": "0"} if status == 429 else {})
        counts["answers"] += 1
        return web.Response(text=answer, content_type="application/json")

    async def stats(_: web.Request) -> web.Response:
        return web.json_response(counts)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/stats", stats)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    os.write(1, f"{runner.addresses[0][1]}\n".encode())
    await asyncio.sleep(MAX_LIFE_S)


@contextmanager
def stub(*, latency_s: float, fault_rate: float) -> Iterator[str]:
    """The root URL of a stub in a process of its own."""
    command = [sys.executable, __file__, "--stub", str(latency_s), str(fault_rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def requests(count: int, tag: str) -> Iterator[Request]:
    """``count`` distinct requests."""
    for number in range(count):
        prompt = Prompt.build([Message("user", f"{tag}: question {number}")])
        yield build_request(prompt, 0, provider=OpenAIProvider(), model="stub", sampling=SamplingSpec(), seed=0)


async def floor(url: str, *, count: int, concurrency: int, tag: str) -> int:
    """Bare aiohttp and a semaphore; returns the number of answers."""
    semaphore = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

        async def ask(request: Request) -> int:
            async with semaphore:
                while True:
                    async with session.post(url, json=request.body) as response:
                        if response.status == 200:
                            return len((await response.json())["choices"])

        return sum(await asyncio.gather(*(ask(request) for request in requests(count, tag))))


async def engine(url: str, *, count: int, concurrency: int, tag: str, path: Path) -> int:
    """The engine with its journal; returns the number of answers."""
    settled: list[int] = []
    with Journal(path) as journal:
        async with AiohttpTransport(url, secret=None, timeout_s=30, concurrency=concurrency) as transport:
            asker = Engine(Endpoint(url, "stub", None), transport, journal, RetryPolicy(10, base_s=0.02), concurrency)
            await asker.run(requests(count, tag), on_settled=lambda reply: settled.append(not reply.error))
    return sum(settled)


def measure_rate(*, count: int, concurrency: int, repeats: int, fault_rate: float, folder: Path) -> dict[str, Any]:
    """Requests a second of both, interleaved, and the ratio of the medians."""
    rates: dict[str, list[float]] = {"floor": [], "engine": []}
    with stub(latency_s=0.02, fault_rate=fault_rate) as root:
        url = f"{root}/v1/chat/completions"
        for repeat in range(repeats):
            tag, path = f"run {repeat}", folder / f"{repeat}-{fault_rate}.sqlite"
            for name, work in (
                ("floor", floor(url, count=count, concurrency=concurrency, tag=tag)),
                ("engine", engine(url, count=count, concurrency=concurrency, tag=tag, path=path)),
            ):
                start = time.perf_counter()
                answers = asyncio.run(work)
                assert answers == count, f"expected {count} answers from {name}, got {answers}"
                rates[name].append(count / (time.perf_counter() - start))
        start = time.perf_counter()
        asyncio.run(
            engine(url, count=count, concurrency=concurrency, tag="run 0", path=folder / f"0-{fault_rate}.sqlite")
        )
        replay_s = time.perf_counter() - start
    medians = {f"{name}_per_s": round(statistics.median(values)) for name, values in rates.items()}
    ratio = round(medians["engine_per_s"] / medians["floor_per_s"], 2)
    return {"faults": fault_rate, **medians, "ratio": ratio, "replay_of_all_s": round(replay_s, 3)}


def measure_kill(*, count: int, concurrency: int, folder: Path) -> dict[str, Any]:
    """Calls that the stub sees in all when a run is killed halfway and repeated."""
    with stub(latency_s=0.15, fault_rate=0.0) as root:
        command = [sys.executable, __file__, "--ask", root, str(count), str(concurrency), str(folder / "kill.sqlite")]
        with subprocess.Popen(command) as asker:
            while _calls(root) < count // 2 and asker.poll() is None:
                time.sleep(0.01)
            asker.send_signal(signal.SIGKILL)
        at_kill = _calls(root)
        subprocess.run(command, check=True, timeout=120)
        return {"requests": count, "concurrency": concurrency, "calls_at_kill": at_kill, "calls_in_all": _calls(root)}


def _calls(root: str) -> int:
    with urllib.request.urlopen(f"{root}/stats", timeout=10) as response:
        return int(json.load(response)["calls"])


def main() -> None:
    """Measure and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="requests a run")
    parser.add_argument("--concurrency", type=int, default=64, help="most calls in flight")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    parser.add_argument("--stub", nargs=2, type=float, help=argparse.SUPPRESS)
    parser.add_argument("--ask", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stub:
        asyncio.run(serve_stub(latency_s=given.stub[0], fault_rate=given.stub[1]))
    elif given.ask:
        root, count, concurrency, path = given.ask
        url = f"{root}/v1/chat/completions"
        asyncio.run(engine(url, count=int(count), concurrency=int(concurrency), tag="kill", path=Path(path)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            for fault_rate in (0.0, 0.05):
                rate = measure_rate(
                    count=given.count,
                    concurrency=given.concurrency,
                    repeats=given.repeats,
                    fault_rate=fault_rate,
                    folder=Path(folder),
                )
                print(json.dumps(rate), flush=True)
            print(json.dumps(measure_kill(count=600, concurrency=32, folder=Path(folder))))
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"peak_rss_mb": round(peak_mb), "load": [round(load, 1) for load in os.getloadavg()]}))


if __name__ == "__main__":
    main()
