"""Says what a process waits for, where it would be silent: a store or a host that has not answered for five seconds.

A thread looks once a second at the requests under way. The first process of a run prints its lines; in Ray's workers
`print_line` is replaced (`worker_messages.py`), as nobody sees what they print.
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

print_line: Callable[[str], None] = console.print


@dataclass
class PendingRequest:
    """One request, with its repetitions. error: why the last try failed, "" while none has."""

    what: str
    retry_policy: Callable[[], str]
    error: str = ""
    begun: float = field(default_factory=time.monotonic)

    @property
    def store(self) -> str:
        """Scheme and host, "" for local files."""
        return "://".join(urlsplit(self.what)[:2]) if "://" in self.what else ""


@contextmanager
def report_when_slow(what: str, retry_policy: Callable[[], str]) -> Iterator[PendingRequest]:
    """Around a request: says so if it takes long, unless data of a store that answers is under way.

    Args:
        what: the URI.
        retry_policy: how long it will be tried and what changes that, for the line.

    Yields:
        The request, whose `error` is to be set when a try fails.
    """
    request = PendingRequest(what, retry_policy)
    key = id(request)
    _requests[key] = request
    _start()
    try:
        yield request
        _responsive.add(request.store)
    finally:
        del _requests[key]


_requests: dict[int, PendingRequest] = {}
_responsive = {""}  # stores; local files are slow only because they are large
_last_reported: dict[str, float] = {}
_thread: threading.Thread | None = None


def _start() -> None:
    global _thread
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_report_slow, name="slow_requests", daemon=True)
        _thread.start()


def _report_slow() -> None:
    while True:
        time.sleep(min(1.0, SILENCE / 5))
        for request in list(_requests.values()):
            if _is_due(request, time.monotonic()):
                _last_reported[request.store] = time.monotonic()
                print_line(
                    f"waiting    {request.what} has not answered for {SILENCE:g} seconds"
                    f"{f' ({request.error})' if request.error else ''}: {request.retry_policy()}"
                )


def _is_due(request: PendingRequest, now: float) -> bool:
    if now - request.begun < SILENCE or not (request.error or request.store not in _responsive):
        return False
    return (
        now - _last_reported.get(request.store, -_AGAIN) >= _AGAIN
        and now - max(_last_reported.values(), default=-_GAP) >= _GAP
    )
