"""The one exception that users see: a single line saying what is wrong, where, and what to do."""

import os


class RecoError(Exception):
    """Bad input, a missing weight, an artifact of another model: printed as one line, exit status 1."""


class UsageError(RecoError):
    """The command line itself is wrong (an option missing or malformed): exit status 2."""


def reason(error: BaseException) -> str:
    """Why, in a few words: the system's own for a file that cannot be had, else the message's first line."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "could not create a memory object")


def out_of_memory(error: BaseException) -> bool:
    """Whether a computation ran out of memory: Python's error, or one of PyTorch's, which are RuntimeErrors."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    )
