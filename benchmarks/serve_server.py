"""The server that `benchmarks/serve.py` measures: `reco-ray serve` with a Ray of its own; what its processes take."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

_SAMPLE_SECONDS = 2.0


class Server:
    """A server that is ready. `url`: without a slash at its end."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self._log = folder / "server.log"
        self._options = options
        for _ in range(3):  # Ray gives up when its own processes take more than 30 seconds to start
            self._start()
            ready = False
            try:
                ready = self._becomes_ready()
            finally:
                if not ready:
                    self.stop()
            if ready:
                return
        raise SystemExit(f"the server does not start: {self._log.read_text()}")

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        command = [sys.executable, "-c", "from reco_ray.cli import main; main()", "serve"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(port), *self._options],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _becomes_ready(self, seconds: float = 240) -> bool:
        """Waits until images can be segmented."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200:
                    return True
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        return False

    def stop(self) -> None:
        """Sends SIGTERM and waits."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(90)
            except subprocess.TimeoutExpired:
                self._process.kill()  # Ray's processes follow it

    def put(self, vocabularies: dict[str, list[str]], seconds: float = 1200) -> None:
        """Puts vocabularies and waits until all are built."""
        deadline = time.monotonic() + seconds
        with httpx.Client(base_url=self.url, timeout=120) as client:
            for name, concepts in vocabularies.items():
                client.put(f"/v1/vocabularies/{name}", json={"concepts": concepts}).raise_for_status()
            while True:
                listed = client.get("/v1/vocabularies").json()["vocabularies"]
                states = {each["status"] for each in listed if each["name"] in vocabularies}
                if states == {"ready"}:
                    return
                if "failed" in states or time.monotonic() > deadline:
                    raise SystemExit(f"vocabularies are not built: {listed}")
                time.sleep(0.5)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The server's processes by what they do."""
        found: dict[str, list[psutil.Process]] = {}
        root = psutil.Process(self._process.pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                kind = "server" if process == root else _kind(process)
            except psutil.Error:
                continue  # it ended meanwhile
            found.setdefault(kind, []).append(process)
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far of every kind of process."""
        times: dict[str, float] = {}
        for kind, processes in self.processes().items():
            for process in processes:
                try:
                    used = process.cpu_times()
                except psutil.Error:
                    continue
                times[kind] = times.get(kind, 0.0) + used.user + used.system
        return times

    @contextmanager
    def watched(self) -> Iterator[list[tuple[float, dict[str, int]]]]:
        """Samples (seconds, resident bytes by kind) while the block runs.

        Without shared pages: those of libraries and of Ray's object store, which every reader maps.
        """
        samples: list[tuple[float, dict[str, int]]] = []
        done = threading.Event()
        started = time.monotonic()

        def watch() -> None:
            while not done.wait(_SAMPLE_SECONDS):
                resident: dict[str, int] = {}
                for kind, processes in self.processes().items():
                    for process in processes:
                        try:
                            info = process.memory_info()
                            resident[kind] = resident.get(kind, 0) + info.rss - info.shared
                        except psutil.Error:
                            continue
                samples.append((time.monotonic() - started, resident))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            done.set()
            thread.join()


def memory(samples: list[tuple[float, dict[str, int]]]) -> dict[str, Any]:
    """By kind and in all: megabytes in the first and in the last tenth, and MB a minute over the second half."""
    kinds = sorted({kind for _, resident in samples for kind in resident})
    seconds = np.array([second for second, _ in samples])
    tenth, half = max(1, len(samples) // 10), len(samples) // 2
    report = {}
    for kind in (*kinds, "all"):
        values = np.array(
            [sum(resident.values()) if kind == "all" else resident.get(kind, 0) for _, resident in samples]
        )
        slope = np.polyfit(seconds[half:] / 60, values[half:] / 1e6, 1)[0] if len(samples) > 4 else 0.0
        report[kind] = {
            "first_tenth_mb": round(float(values[:tenth].mean()) / 1e6, 1),
            "last_tenth_mb": round(float(values[-tenth:].mean()) / 1e6, 1),
            "mb_per_minute": round(float(slope), 2),
        }
    return report


def _kind(process: psutil.Process) -> str:
    """Replicas by deployment, the proxy, the controller; all else of Ray together."""
    words = " ".join(process.cmdline())
    if replica := re.search(r"ServeReplica:\w+:(\w+)", words):
        return replica[1]
    for title, kind in (("ProxyActor", "proxy"), ("ServeController", "controller")):
        if title in words:
            return kind
    return "ray"
