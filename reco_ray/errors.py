"""The exceptions that users see: each a single line saying what is wrong, where, and what to do.

Subclasses tell programs what kind of trouble it is, so that nobody need read the text.
"""

import errno
import json
import os
import re


class RecoError(Exception):
    """Anything that the user can mend: the base class of all errors of reco-ray, printed as one line, exit status 1."""


class UsageError(RecoError):
    """The command line itself is wrong (an option missing or malformed): exit status 2."""


class SettingError(RecoError):
    """A setting, an option or the name of a component is unknown, or does not fit what it is used with."""


class MissingError(RecoError):
    """A file, a folder or an artifact is not there, or a folder holds no images."""


class UnfinishedError(RecoError):
    """An artifact is there but not finished: the command that makes it goes on with it."""


class OtherModelError(RecoError):
    """An artifact was made with other models, settings or inputs than it is used with."""


class UnreadableError(RecoError):
    """An input or an artifact is damaged, may not be read, or is of a kind that is not supported."""


class NoRoomError(RecoError):
    """Memory or a disk is full, or the cluster has no node with the resources that are asked for."""


class MissingPackageError(RecoError):
    """A package (an extra of reco-ray) or a model's weights are not installed."""


def file_error(line: str, error: BaseException, otherwise: type[RecoError] = UnreadableError) -> RecoError:
    """The exception for a file that the system refused.

    Args:
        line: its text.
        error: what was raised.
        otherwise: the class where the file is there and no disk is full.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MissingError(line)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return NoRoomError(line)
    return otherwise(line)


def pack(error: RecoError) -> str:
    """An error as text that crosses from a worker to the driver: its class and its line."""
    return json.dumps([type(error).__name__, str(error)])


def unpack(text: str) -> RecoError:
    """The error that `pack` wrote; of a class that this process does not know, a RecoError."""
    name, line = json.loads(text)
    return _subclasses(RecoError).get(name, RecoError)(line)


def _subclasses(base: type[RecoError]) -> dict[str, type[RecoError]]:
    found = {base.__name__: base}
    for each in base.__subclasses__():
        found |= _subclasses(each)
    return found


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

# In PyTorch's errors, by their source: its own allocators, C++, oneDNN, cuBLAS and its relatives, cuDNN and cuFFT.
_NO_MEMORY = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a memory object",
    "status_alloc_failed",
    "allocation_failed",
    "cufft_alloc_failed",
    "cudaerrormemoryallocation",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether a computation ran out of memory: Python's error, or one of PyTorch's, which are RuntimeErrors."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    )
