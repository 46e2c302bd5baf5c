"""A service of our own for the tests: `reco-ray serve` in a process, over a tiny real index."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from clusters import local_ray
from images import write_photographs
from processes import kill_at_once

from reco_ray.cli import main

START = 280  # seconds
SMALL = ("references.exemplars=2", "references.image_size=128", "segment.image_size=192")


def tiny_index(folder: Path) -> Path:
    """An index over 28 photographs."""
    write_photographs(folder / "corpus", 28, long_side=160)
    with local_ray(2):
        main(["embed", "--corpus", str(folder / "corpus"), "--out", str(folder / "embeddings")])
        main(["index", "--embeddings", str(folder / "embeddings"), "--out", str(folder / "index")])
    return folder / "index"


@contextmanager
def running_service(folder: Path, *arguments: str) -> Iterator[str]:
    """The address of a service that is ready, as "http://127.0.0.1:PORT/"; it is stopped afterwards."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/"
    settings = [word for setting in SMALL for word in ("--set", setting)]
    places = ["--port", str(port), "--state", str(folder / "state")]
    program = [sys.executable, "-c", "from reco_ray.cli import main; main()"]
    command = [*program, "serve", *places, *settings, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log = folder / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait_until_ready(url, process, log)
        yield url
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            kill_at_once(process.pid)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(url + "readyz", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready after {START} s:\n{log.read_text()}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
