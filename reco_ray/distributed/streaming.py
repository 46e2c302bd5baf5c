"""Ray Data's settings for all pipelines: no progress output, no busy scheduler loop, and a timeout."""

import copy
import math
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError

from reco_ray.distributed import ray_private

Item = TypeVar("Item")

# Between steps of Ray Data's scheduler. Each handles all that is ready, so that this delays nothing that takes longer.
STEP_SECONDS = 0.02
POLL_SECONDS = 5.0
_END: Any = object()


def stream_context() -> DataContext:
    """A copy of the current context for one pipeline, for `with DataContext.current(context)`."""
    context = copy.deepcopy(DataContext.get_current())
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    # A pool never shrinks: a new worker would have to load its models again.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    ray_private.slow_down_scheduler(context, STEP_SECONDS)
    return context


def with_timeout(
    rows: Generator[Item], seconds: float, while_waiting: Callable[[], None] = lambda: None
) -> Generator[Item]:
    """Yields the same rows, read in a thread, and raises if none comes for some time.

    Ray's own timeout (`execution_no_progress_timeout_s`) is checked in its scheduler's loop. When Ray kills workers
    repeatedly for lack of memory, it was seen not to fire long after it was due (Ray 2.60).

    Args:
        rows: of a pipeline; closed by the thread when the caller stops, which ends the pipeline.
        seconds: maximum time without a row; negative = no limit.
        while_waiting: called every few seconds while there is no row.

    Raises:
        ExecutionTimeoutError: no row came within `seconds`.
    """
    found: queue.Queue[tuple[Item, BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(row: Item, error: BaseException | None = None) -> None:
        while not stopped.is_set():
            try:
                return found.put((row, error), timeout=0.1)
            except queue.Full:
                continue

    def pull() -> None:
        try:
            for row in rows:
                put(row)
                if stopped.is_set():
                    break
            put(_END)
        except BaseException as error:
            put(_END, error)
        finally:
            rows.close()

    thread = threading.Thread(target=pull, daemon=True)
    thread.start()
    try:
        last = time.monotonic()
        while True:
            left = last + seconds - time.monotonic() if seconds >= 0 else math.inf
            try:
                row, error = found.get(timeout=max(0.0, min(left, POLL_SECONDS)))
            except queue.Empty:
                if left > POLL_SECONDS:
                    while_waiting()
                    continue
                # What still stands there when the session has ended would start a Ray of its own with its next call.
                ray_private.forbid_new_session()
                raise ExecutionTimeoutError(f"no row in {seconds:.0f} seconds") from None
            if error is not None:
                raise error
            if row is _END:
                return
            yield row
            last = time.monotonic()
    finally:
        stopped.set()
        thread.join(timeout=10)  # until the pipeline has ended, unless it is the one that stands still
