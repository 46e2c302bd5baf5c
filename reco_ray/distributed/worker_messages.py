"""Lines from workers for the terminal of the run: Ray keeps what they print in files of their nodes.

The first line starts an actor without CPUs that holds lines until the driver takes them, so that a run without any pays
nothing but a question every few seconds.
"""

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError

from reco_ray.presentation.console import console

_NAME = "reco-ray-remarks"
_MOST = 20  # lines that wait for the driver
_SECONDS = 10  # that the driver waits for its lines
_START_SECONDS = 60  # that a worker waits for the actor


class _MessageBuffer:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        if line not in self._lines and len(self._lines) < _MOST:
            self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


_buffer: Any = None


def post(line: str) -> None:
    """In a worker: leaves a line for the driver; none where Ray is in trouble itself."""
    global _buffer
    with contextlib.suppress(RayError, ValueError):
        # Kept: the actor ends when its maker has no handle any more.
        _buffer = ray.remote(num_cpus=0)(_MessageBuffer).options(name=_NAME, get_if_exists=True).remote()
        ray.get(_buffer.put.remote(f"{line} (node {ray.util.get_node_ip_address()})"), timeout=_START_SECONDS)


def print_posted() -> None:
    """In the driver: prints the lines that came since."""
    with contextlib.suppress(RayError, ValueError):  # ValueError: nobody has left any
        lines: list[str] = ray.get(ray.get_actor(_NAME).take.remote(), timeout=_SECONDS)
        for line in lines:
            console.print(line)
