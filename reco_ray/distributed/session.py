"""The Ray session: connects to a running cluster, or starts Ray on this machine."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Before Ray is imported: no usage reports, and no messages of its C++ core between our lines.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Ray ends workers that are idle for a second: with two CPUs, every pause of a pipeline then costs a new process that
# imports torch again. Read by the Ray that starts here; a running cluster has its own setting.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")

import ray

from reco_ray.distributed import ray_private
from reco_ray.distributed.local_ray import find_places
from reco_ray.distributed.ray_errors import explain_ray_error
from reco_ray.distributed.reachability import check_reachable
from reco_ray.errors import NoRoomError, RecoError, UsageError, reason
from reco_ray.presentation.console import console, waiting


@contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """Connects to `address`, else to $RAY_ADDRESS, else starts Ray on this machine and stops it at the end.

    Inside an existing connection it only does the last: errors of Ray that a user can mend become RecoErrors.

    Raises:
        UsageError: an address of Ray's client.
        RecoError: no cluster answers at the address, or Ray does not start here; the cluster fails.
    """
    if ray.is_initialized():
        with _explained_ray_errors():
            yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise UsageError(
            f"{address}: Ray's client cannot run the streams of Ray Data: submit a job (`ray job submit --address "
            "http://HEAD:8265 -- ...`), or run on a node of the cluster with --address auto"
        )
    places = {} if address else _local_places()
    ray_private.print_ray_messages_with(_MemoryWarnings())
    try:
        check_reachable(address or "")
        with waiting(f"connecting to {address}" if address else "starting Ray"), _silent_descriptor():
            taken = ray_private.init(
                places,
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # a bare one, where Ray's own processes take more than 30 seconds to start
        where = f"no Ray cluster answers at {address}" if address else "Ray does not start on this machine"
        path = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
        raise RecoError(f"{where}: {reason(error)}{path}") from error
    if not taken:
        ray_private.report_missing_feature(
            f"it keeps its files where it likes, not in {', '.join(places.values())}"
        )
    try:
        with _explained_ray_errors():
            yield
    finally:
        ray.shutdown()


def _local_places() -> dict[str, str]:
    """The folders of a Ray that starts here; sets $RAY_AUTH_TOKEN where Ray could not keep a token."""
    places = find_places()
    for warning in places.warnings:
        console.print(f"warning    {warning}")
    if places.token is not None:
        os.environ["RAY_AUTH_TOKEN"] = places.token  # Ray's own processes and workers inherit it
    objects = {"plasma_directory": places.objects} if places.objects else {}
    return {"temp_dir": places.folder, **objects}


class _MemoryWarnings:
    """In the place of Ray's own printer, which has no switch: it prints what raylets report, e.g. on the number of
    processes, to standard output, where results belong. Shown is what users must act on, once in a while, as Ray says
    it of every worker that it kills; logs have the rest.
    """

    SECONDS = 60.0

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, data: Mapping[str, Any], **_: Any) -> None:
        for line in "\n".join(data["lines"]).splitlines():
            if ("memory pressure" in line or "low on memory" in line) and time.monotonic() >= self._next:
                self._next = time.monotonic() + self.SECONDS
                console.print(f"Ray: {line.strip()}")


@contextmanager
def _explained_ray_errors() -> Iterator[None]:
    try:
        yield
    except RecoError:
        raise
    except Exception as error:
        if (line := explain_ray_error(error)) is None:
            raise
        raise NoRoomError(line) from error


@contextmanager
def _silent_descriptor() -> Iterator[None]:
    """Discards what is written to file descriptor 2: there Ray's C++ core announces how silent it will be."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
