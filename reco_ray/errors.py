"""The one exception that users see: a single line saying what is wrong, where, and what to do."""

import os
import re


class RecoError(Exception):
    """Bad input, a missing weight, an artifact of another model: printed as one line, exit status 1."""


class UsageError(RecoError):
    """The command line itself is wrong (an option missing or malformed): exit status 2."""


def reason(error: BaseException) -> str:
    """Why, in a few words: the system's own for a file that cannot be had, the status of an HTTP response, else the
    message's first line.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    if status := http_status(error):
        return f"HTTP status {status}{', the credentials do not suffice' if status in (401, 403) else ''}"
    if said := _GOOGLE.search(str(error)):
        if _NO_CREDENTIALS in said["message"]:
            cause = said["message"].rpartition("error message was: ")[2].removeprefix("PerformWork() - ")
            return f"no Google credentials ({cause}): GOOGLE_APPLICATION_CREDENTIALS names their file"
        return f"{said['code']}: {said['message'].removeprefix('PerformWork() - ')}"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def http_status(error: BaseException) -> int | None:
    """The status of the response that an HTTP client's exception carries."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


# google-cloud-cpp, as pyarrow passes it on: what its last try got, between remarks on how it tried.
_GOOGLE = re.compile(
    r"google::cloud::Status\((?P<code>\w+): (.*?with a last message of )?(?P<message>.*?) error_info=",
    re.DOTALL,
)
_NO_CREDENTIALS = "Could not create a OAuth2 access token"

_NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "could not create a memory object")


def out_of_memory(error: BaseException) -> bool:
    """Whether a computation ran out of memory: Python's error, or one of PyTorch's, which are RuntimeErrors."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    )
