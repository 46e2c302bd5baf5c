"""Sends images to a server as fast as it answers, or at a rate; a process of its own, so that its CPU time is known.

Prints one JSON line. Bodies are read once; an answer is read and thrown away. Latencies count from when a request was
due, not from when it could be sent: a server that stalls cannot hide the requests that waited meanwhile.

    python benchmarks/serve_load.py http://127.0.0.1:8000 --images FOLDER --vocabularies a,b --seconds 20 --rate 5
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path

import aiohttp
import numpy as np

_MOST_AT_ONCE = 1000  # requests under way; what is due beyond them is not sent, and counted


class Load:
    """What was sent and came back. Times are of `time.perf_counter()`."""

    def __init__(self, options: argparse.Namespace, session: aiohttp.ClientSession) -> None:
        self._session, self._accept = session, options.accept
        self._bodies = [file.read_bytes() for file in sorted(Path(options.images).glob("*.jpg"))]
        names = options.vocabularies.split(",")
        self._urls = [f"{options.url}/v1/segment?vocabulary={name}" for name in names]
        self._sent = 0
        self._count_from = time.perf_counter() + options.warm_up
        self.end = self._count_from + options.seconds
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.received = self.unsent = 0

    async def send(self, due: float) -> None:
        """One request; counted if its answer comes inside the time that counts."""
        number = self._sent
        self._sent += 1
        body = self._bodies[number % len(self._bodies)]
        headers = {"Content-Type": "image/jpeg", "Accept": self._accept}
        size = 0
        try:
            url = self._urls[number % len(self._urls)]
            async with self._session.post(url, data=body, headers=headers) as answer:
                size = len(await answer.read())
                status = str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        now = time.perf_counter()
        if self._count_from <= now <= self.end:
            self.statuses[status] += 1
            if status == "200":
                self.latencies.append(now - due)
                self.received += size

    async def at_saturation(self, connections: int) -> None:
        """Every connection sends as soon as it has its answer."""

        async def client() -> None:
            while (now := time.perf_counter()) < self.end:
                await self.send(now)

        await asyncio.gather(*(client() for _ in range(connections)))

    async def at_rate(self, rate: float) -> None:
        """Requests of independent clients: intervals are exponential, of a fixed seed."""
        intervals = random.Random(0)
        running: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while (due := due + intervals.expovariate(rate)) < self.end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(running) >= _MOST_AT_ONCE:
                self.unsent += 1
                continue
            task = asyncio.create_task(self.send(due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)


async def run(options: argparse.Namespace) -> dict[str, object]:
    """Sends for as long as the options say; what came back."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        load = Load(options, session)
        if options.rate is None:
            await load.at_saturation(options.connections)
        else:
            await load.at_rate(options.rate)
    latencies = np.array(load.latencies or [float("nan")]) * 1000
    return {
        "images_per_second": round(load.statuses["200"] / options.seconds, 3),
        "milliseconds": {f"p{p}": round(float(np.percentile(latencies, p)), 1) for p in (50, 95, 99)},
        "statuses": dict(sorted(load.statuses.items())),
        "unsent": load.unsent,
        "bytes_of_an_answer": round(load.received / max(1, load.statuses["200"])),
        "cores_of_the_load": round(time.process_time() / (options.warm_up + options.seconds), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--images", required=True, help="folder of .jpg files")
    parser.add_argument("--vocabularies", required=True, help="names, taken in turn")
    parser.add_argument("--accept", default="application/json")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=float, help="requests a second; without it, as many as are answered")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds that do not count")
    parser.add_argument("--seconds", type=float, default=20.0)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
