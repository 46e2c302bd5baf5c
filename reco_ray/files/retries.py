"""Retries requests after temporary failures of a store: throttling, 5xx, resets, timeouts.

Retries end `RECO_RETRY_SECONDS` (default 120) after the first failure. Pauses double from a quarter of a second to ten,
each drawn at random from its upper half, so that workers do not retry all at once.
"""

import errno
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from reco_ray.errors import RecoError, SettingError, http_status, reason
from reco_ray.files.proxies import proxy_of
from reco_ray.files.slow_requests import report_when_slow

Result = TypeVar("Result")

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds

_TRANSIENT_ERRNO = {
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ETIMEDOUT,
    errno.EPIPE,
    errno.EAGAIN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.ESTALE,
}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
# Errors that pyarrow's stores (the AWS SDK, google-cloud-cpp) and HTTP clients report as text only.
_TRANSIENT_WORDS = re.compile(
    r"HTTP status (408|425|429|5\d\d)|curlCode|timed? ?out|connection (reset|aborted|refused|closed|broken)"
    r"|AWS Error (INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|SLOW_DOWN|REQUEST_TIMEOUT|NETWORK_CONNECTION)"
    r"|\b(UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|ABORTED)\b|incomplete ?(chunked )?read"
    r"|unexpected end of stream|server disconnected|peer closed connection|name resolution|name or service not known",
    re.IGNORECASE,
)
# No credentials are configured, and outside Google's cloud the host that provides them does not exist.
_NO_CREDENTIALS = re.compile(r"OAuth2 access token.*Could not resolve host", re.DOTALL)


class StoreUnavailable(RecoError):
    """A store failed until the retries ended. The run stops; the same command resumes it."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later, judged by errno, HTTP status or text."""
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return error.errno in _TRANSIENT_ERRNO
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if status := http_status(error):
        return status in _TRANSIENT_STATUS
    return bool(_TRANSIENT_WORDS.search(str(error))) and not _NO_CREDENTIALS.search(str(error))


def retried(
    function: Callable[[], Result],
    what: str,
    may_pass: Callable[[BaseException], bool] = is_transient,
    kind: str = "store",
) -> Result:
    """Calls `function` until it succeeds, fails permanently, or the retries end.

    Args:
        function: called again after an error.
        what: the URI, for messages.
        may_pass: whether an error is temporary.
        kind: of the service, for messages.

    Raises:
        StoreUnavailable: temporary failures for `RECO_RETRY_SECONDS`.
        Exception: raised by the function, if it is not temporary.
    """
    pause, deadline = FIRST_PAUSE, None
    with report_when_slow(what, _retry_policy) as request:
        while True:
            try:
                return function()
            except Exception as error:
                if not may_pass(error):
                    if isinstance(error, pa.ArrowException) and "google::cloud::Status" in str(error):
                        raise OSError(reason(error)) from error  # credentials that cannot be used
                    raise
                request.error = f"{reason(error)}{_proxy_note(what)}"
                now = time.monotonic()
                deadline = deadline or now + retry_seconds()
                if now + pause > deadline:
                    raise StoreUnavailable(
                        f"{what}: the {kind} does not answer: {request.error}: the same command goes on later"
                    ) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)


def _retry_policy() -> str:
    return f"it is asked again for {retry_seconds():g} seconds (RECO_RETRY_SECONDS)"


def _proxy_note(what: str) -> str:
    """Names the proxy in use, which may be the cause."""
    proxy = proxy_of(what)
    return f", through the proxy {proxy}" if proxy else ""


def retry_seconds() -> float:
    """`RECO_RETRY_SECONDS`.

    Raises:
        SettingError: it is not a number.
    """
    value = os.environ.get("RECO_RETRY_SECONDS", "120")
    try:
        return float(value)
    except ValueError as error:
        raise SettingError(f"RECO_RETRY_SECONDS={value}: expected a number of seconds") from error
