"""Sends lines from workers to the driver's terminal; Ray writes workers' output to files of their nodes.

The first line starts an actor without CPUs that buffers lines for the driver. Without lines, the only cost is a lookup
of that actor every few seconds.
"""

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError

from reco_ray.presentation.console import console

_NAME = "reco-ray-messages"
_MOST = 20  # buffered lines
_SECONDS = 10  # timeout of the driver
_START_SECONDS = 60  # timeout of a worker, until the actor has started


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
    """Sends a line from a worker to the driver; errors of Ray are ignored."""
    global _buffer
    with contextlib.suppress(RayError, ValueError):
        # A global, as the actor ends when its creator has no handle.
        _buffer = ray.remote(num_cpus=0)(_MessageBuffer).options(name=_NAME, get_if_exists=True).remote()
        ray.get(_buffer.put.remote(f"{line} (node {ray.util.get_node_ip_address()})"), timeout=_START_SECONDS)


def print_posted() -> None:
    """Prints, in the driver, the lines sent since the last call."""
    with contextlib.suppress(RayError, ValueError):  # ValueError: no worker has sent any
        lines: list[str] = ray.get(ray.get_actor(_NAME).take.remote(), timeout=_SECONDS)
        for line in lines:
            console.print(line)
