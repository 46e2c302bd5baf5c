"""Lines from workers for the terminal of the run: Ray keeps what they print in files of their nodes.

The first line starts an actor without CPUs that holds lines until the driver takes them, so that a run without any pays
nothing but a question every few seconds.
"""

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError

from reco_ray.console import console

_NAME = "reco-ray-remarks"
_MOST = 20  # lines that wait for the driver
_SECONDS = 10  # that one call may take


class _Board:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        if line not in self._lines and len(self._lines) < _MOST:
            self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


def _actor() -> Any:
    return ray.remote(num_cpus=0)(_Board)


def post(line: str) -> None:
    """In a worker: leaves a line for the driver; none where Ray is in trouble itself."""
    with contextlib.suppress(RayError, ValueError):
        board = _actor().options(name=_NAME, get_if_exists=True).remote()
        ray.get(board.put.remote(f"{line} (node {ray.util.get_node_ip_address()})"), timeout=_SECONDS)


def show() -> None:
    """In the driver: prints the lines that came since."""
    with contextlib.suppress(RayError, ValueError):  # ValueError: nobody has left any
        lines: list[str] = ray.get(ray.get_actor(_NAME).take.remote(), timeout=_SECONDS)
        for line in lines:
            console.print(line)
