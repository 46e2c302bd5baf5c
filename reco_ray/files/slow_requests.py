"""Reports stores and hosts that have not answered a request for five seconds.

A thread checks the pending requests once a second. The driver prints the lines; in Ray's workers, whose output is not
visible, `print_line` is replaced (`worker_messages.py`).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from reco_ray.presentation.console import console

SILENCE = 5.0  # seconds until a request is reported
_AGAIN = 60.0  # seconds between two lines about the same store
_GAP = 10.0  # seconds between any two lines

print_line: Callable[[str], None] = console.print


@dataclass
class PendingRequest:
    """A request with its retries. error: of the last try, "" if none has failed."""

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
    """Context manager for a request; reports it if it is slow, unless the store is known to answer.

    Args:
        what: the URI.
        retry_policy: describes how long the request is retried, for the line.

    Yields:
        The request; the caller sets its `error` when a try fails.
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
_responsive = {""}  # stores that have answered; local files count as one
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
