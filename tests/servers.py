"""`reco-ray serve` in a process of its own, on a free port of loopback, and the artifacts it serves."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import ray
from safetensors.torch import save as save_tensors

from reco_ray.contents import SegmenterContent
from reco_ray.files import artifacts, storage
from reco_ray.training.network import build_network
from reco_ray.vocabulary import parse_concepts

BYTES = 300_000  # that the tests' servers let a request have
_COMMAND = (sys.executable, "-c", "from reco_ray.cli import main; main()")


class Server:
    """A running server. `key`: sent with every request of `client()`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = [*_COMMAND, "serve", "--port", str(self.port), *options]
        self._log = folder / f"server-{self.port}.log"
        self._environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._options, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 240
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()  # no fixture has it yet that could
                raise AssertionError(self.log)
            time.sleep(0.3)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def log(self) -> str:
        return self._log.read_text()

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def stop(self) -> int:
        """Sends SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def kill(self) -> None:
        """For a fixture's end, whatever happened before."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_vocabulary(client: httpx.Client, name: str) -> dict[str, Any]:
    """Asks until it is built."""
    deadline = time.monotonic() + 240
    while (found := client.get(f"/v1/vocabularies/{name}").json())["status"] == "building":
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def write_segmenter(out: Path, concepts: str) -> int:
    """Writes a segmenter artifact with seeded random weights: a real network that was never trained; the bytes
    of its weights."""
    vocabulary = parse_concepts(concepts)
    labels = ["background", *vocabulary.names]
    architecture = (
        "smp:FPN/tu-tf_efficientnet_lite0@decoder_pyramid_channels=32,decoder_segmentation_channels=32"
    )
    network = build_network(architecture, len(labels), initial="random", seed=7)
    writer = artifacts.ArtifactWriter(str(out), SegmenterContent, {"seed": 7})
    assert writer.finished() is None
    tensors = {name: tensor.contiguous() for name, tensor in network.module.state_dict().items()}
    weights = save_tensors(tensors)
    storage.write_bytes(storage.join(writer.uri, "weights.safetensors"), weights)
    content = SegmenterContent(
        architecture=architecture, labels=labels, background=True, vocabulary=vocabulary, image_size=96
    )
    writer.commit({"images": 0}, content)
    return len(weights)
