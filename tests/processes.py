"""Finding and killing processes of our own, as a kernel out of memory or a power cut would (Linux)."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def descendants(root: int) -> list[int]:
    """Everything that `root` started, directly or not, and that runs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended while we looked
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = []
    waiting = [root]
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        found += below
    return found


def title(pid: int) -> str:
    """The process's command line; Ray writes there what a worker does."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def kill_at_once(root: int) -> None:
    """Kills a process and all its descendants; none gets to tidy up, none is left."""
    stopped: set[int] = set()
    while new := {root, *descendants(root)} - stopped:
        for pid in new:
            _send(pid, signal.SIGSTOP)  # it starts nothing new from here on
        stopped |= new
    for pid in stopped:
        _send(pid, signal.SIGKILL)
    while any(_runs(pid) for pid in stopped):
        time.sleep(0.01)


def wait_until(happened: Callable[[], object], otherwise: str) -> None:
    """Looks again and again, for two minutes."""
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
