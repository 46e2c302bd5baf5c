"""One-line messages with remedies for errors of the cluster; docs/operations.md has a section for each."""

import re

from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError

AGAIN = "the same command goes on where it stopped"


def explain_ray_error(error: Exception) -> str | None:
    """The message for an error of Ray, or None if a user cannot do anything about it."""
    # Imported late: it takes nearly a second, and errors are rare.
    from ray.data import DataContext
    from ray.data.exceptions import ExecutionTimeoutError

    place = re.search(r"\bip=([\w.:]+)", str(error))  # of an error raised in a task
    node = f"node {place[1]}" if place else "a node"
    if isinstance(error, OutOfDiskError | ObjectStoreFullError):
        return (
            f"{node}: Ray's object store is full, and so is the disk below /tmp/ray that takes over: make room there, "
            f"or use smaller parts; {AGAIN}"
        )
    if isinstance(error, OutOfMemoryError):
        return (
            f"{node}: Ray killed workers because its memory is nearly used up: fewer workers a node (placement), or "
            f"smaller batches; {AGAIN}"
        )
    if isinstance(error, ExecutionTimeoutError):
        minutes = DataContext.get_current().execution_no_progress_timeout_s / 60
        return (
            f"nothing was finished for {minutes:g} minutes: no node has room for the workers, or they are killed again "
            "and again (`ray status` says which), or a part takes longer "
            f"(RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S=seconds allows it); {AGAIN}"
        )
    return None
