"""Says what a process waits for, where it would be silent: a store or a host that has not answered for five seconds.

A thread looks once a second at the requests under way. The first process of a run prints its lines; in Ray's workers
`tell` is replaced (`remarks.py`), as nobody sees what they print.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from reco_ray.presentation.console import console

SILENCE = 5.0  # seconds before something is said
_AGAIN = 60.0  # seconds before something is said of the same store again
_GAP = 10.0  # seconds between two lines, whatever they are about

tell: Callable[[str], None] = console.print


@dataclass
class Request:
    """One request, with its repetitions. error: why the last try failed, "" while none has."""

    what: str
    outlook: Callable[[], str]
    error: str = ""
    begun: float = field(default_factory=time.monotonic)

    @property
    def store(self) -> str:
        """Scheme and host, "" for local files."""
        return "://".join(urlsplit(self.what)[:2]) if "://" in self.what else ""


@contextmanager
def watched(what: str, outlook: Callable[[], str]) -> Iterator[Request]:
    """Around a request: says so if it takes long, unless data of a store that answers is under way.

    Args:
        what: the URI.
        outlook: how long it will be tried and what changes that, for the line.

    Yields:
        The request, whose `error` is to be set when a try fails.
    """
    request = Request(what, outlook)
    key = id(request)
    _requests[key] = request
    _start()
    try:
        yield request
        _answered.add(request.store)
    finally:
        del _requests[key]


_requests: dict[int, Request] = {}
_answered = {""}  # stores; local files are slow only because they are large
_said: dict[str, float] = {}
_thread: threading.Thread | None = None


def _start() -> None:
    global _thread
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_look, name="waits", daemon=True)
        _thread.start()


def _look() -> None:
    while True:
        time.sleep(min(1.0, SILENCE / 5))
        for request in list(_requests.values()):
            if _is_due(request, time.monotonic()):
                _said[request.store] = time.monotonic()
                tell(
                    f"waiting    {request.what} has not answered for {SILENCE:g} seconds"
                    f"{f' ({request.error})' if request.error else ''}: {request.outlook()}"
                )


def _is_due(request: Request, now: float) -> bool:
    if now - request.begun < SILENCE or not (request.error or request.store not in _answered):
        return False
    return (
        now - _said.get(request.store, -_AGAIN) >= _AGAIN and now - max(_said.values(), default=-_GAP) >= _GAP
    )
