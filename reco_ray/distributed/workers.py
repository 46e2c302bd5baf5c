"""The Ray session: a local one or a running cluster; and how many workers of which size it carries."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Before Ray is imported: no usage reports, and no remarks of its C++ core between our lines.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Ray ends workers that are idle for a second: with two CPUs, every pause of a pipeline then costs a new process that
# imports torch again. Read by the Ray that starts here; a running cluster has its own setting.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")

import ray

from reco_ray.config import Settings, StagePlacement
from reco_ray.distributed import ray_private
from reco_ray.distributed.local_ray import find_places
from reco_ray.distributed.ray_errors import trouble
from reco_ray.distributed.reachability import require_listener
from reco_ray.errors import NoRoomError, RecoError, reason
from reco_ray.presentation.console import console, waiting


@contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """Connects to `address`, else to $RAY_ADDRESS, else starts Ray on this machine and stops it at the end.

    Inside an existing connection it only does the last: errors of Ray that a user can mend become RecoErrors.

    Raises:
        RecoError: no cluster answers at the address, or Ray does not start here; the cluster is in trouble.
    """
    if ray.is_initialized():
        with _troubles():
            yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    places = {} if address else _local_places()
    ray_private.print_remarks_with(_Remarks())
    try:
        require_listener(address or "")
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
        ray_private.lose(f"it keeps its files where it likes, not in {', '.join(places.values())}")
    try:
        with _troubles():
            yield
    finally:
        ray.shutdown()


def _local_places() -> dict[str, str]:
    """The folders of a Ray that starts here; sets $RAY_AUTH_TOKEN where Ray could not keep a token."""
    places = find_places()
    for remark in places.remarks:
        console.print(f"remark     {remark}")
    if places.token is not None:
        os.environ["RAY_AUTH_TOKEN"] = places.token  # Ray's own processes and workers inherit it
    objects = {"plasma_directory": places.objects} if places.objects else {}
    return {"temp_dir": places.folder, **objects}


class _Remarks:
    """In the place of Ray's own printer, which has no switch: it prints what raylets remark, e.g. on the number of
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
def _troubles() -> Iterator[None]:
    try:
        yield
    except RecoError:
        raise
    except Exception as error:
        if (line := trouble(error)) is None:
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


@dataclass(frozen=True)
class Workers:
    """A pool of model workers. `cpus` is what each reserves; `threads` what torch uses inside it.

    resources, reader_resources: custom ones, of a worker and of a task that reads for the pool.
    """

    count: int
    cpus: float
    gpus: float
    threads: int
    device: str
    resources: dict[str, float] = field(default_factory=dict)
    reader_resources: dict[str, float] = field(default_factory=dict)


# Workers leave a quarter of their cores to the tasks that read and decode for them: a pool that takes every
# CPU starves its own input for ever.
_WORKER_SHARE = 0.75
READER_CPUS = 0.25


def plan_workers(
    device: str = "auto",
    most: int | None = None,
    placement: StagePlacement | None = None,
    nodes: Sequence[Mapping[str, float]] | None = None,
) -> Workers:
    """Chooses the pool for the connected cluster: one worker a GPU, or single-threaded workers over the CPUs.

    One thread a worker wastes least on small machines (two workers of one thread beat one of two by a tenth);
    from eight cores on, four threads a worker keep the number of loaded models down, where a node has as many.

    Args:
        device: "auto", "cpu" or "cuda".
        most: an upper bound on the number of workers, e.g. the number of shards.
        placement: what the workers ask for. With `workers` named, that many are asked for, also where the nodes for
            them are still to be started by an autoscaler.
        nodes: the resources of each node of a cluster to plan for; None = the connected one.

    Raises:
        RecoError: "cuda" is asked for and the cluster has no GPU, or no node has a custom resource.
    """
    placement = placement or StagePlacement()
    nodes = node_resources() if nodes is None else nodes
    resources = total_resources(nodes)
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1)
    awaited = placement.workers is not None and placement.gpus_per_worker is not None
    if device.startswith("cuda") and not gpus and not awaited:
        raise NoRoomError(
            f"device {device!r} was asked for, but the cluster has no GPU: use --device cpu or auto"
        )
    if device != "cpu" and (gpus or awaited):
        share = placement.gpus_per_worker or 1.0
        room = gpus * int(1 / share + 1e-9) if share < 1 else int(gpus // share)
        reserved, threads, kind = 1.0, 1, "cuda"
    else:
        share, threads, kind = 0.0, 4 if cpus > 8 and max(n.get("CPU", 0) for n in nodes) >= 4 else 1, "cpu"
        room, reserved = int(cpus // threads), threads * _WORKER_SHARE
        if placement.cpus_per_worker:
            threads = max(1, round(placement.cpus_per_worker))
            room = int(cpus // placement.cpus_per_worker)
    if placement.workers is None:
        for name, amount in placement.worker_resources.items():
            room = min(room, int(resources.get(name, 0.0) / amount + 1e-9))
        for name in placement.worker_resources | placement.reader_resources:
            if name not in resources:
                raise NoRoomError(
                    f"placement asks for the resource {name!r}, which no node has: start one with it, or name the "
                    "number of workers if an autoscaler is to start it"
                )
    count = max(1, placement.workers or room)
    return Workers(
        count=min(count, most or count),
        cpus=reserved if placement.cpus_per_worker is None else placement.cpus_per_worker,
        gpus=share,
        threads=threads,
        device=kind,
        resources=dict(placement.worker_resources),
        reader_resources=dict(placement.reader_resources),
    )


def say_what_is_awaited(workers: Workers) -> None:
    """Prints a line if no node has room for a worker, or for a reader, of the pool: nothing runs until one comes."""
    asked = {
        "worker": {"CPU": workers.cpus, "GPU": workers.gpus, **workers.resources},
        "reader": {"CPU": READER_CPUS, **workers.reader_resources},
    }
    nodes = node_resources()
    for who, amounts in asked.items():
        if not any(all(node.get(name, 0.0) >= amount for name, amount in amounts.items()) for node in nodes):
            listed = ", ".join(f"{name} {amount:g}" for name, amount in amounts.items() if amount)
            console.print(
                f"waiting    no node has room for a {who} ({listed}): one must be started, and `ray status` says "
                "whether an autoscaler is about to"
            )


def node_resources() -> list[dict[str, float]]:
    """What each node of the connected cluster has, whether it is in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def total_resources(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What all nodes have together."""
    names = {name for node in nodes for name in node}
    return {name: sum(node.get(name, 0.0) for node in nodes) for name in names}


def plan_runs(
    runs: int, settings: Settings, nodes: Sequence[Mapping[str, float]] | None = None
) -> tuple[Workers, int]:
    """Chooses the workers of training runs: a GPU each where there are any, else cores shared evenly among the runs.

    No worker has cores of two nodes.

    Args:
        nodes: as `plan_workers`.

    Returns:
        The workers of one run, and how many runs go on side by side.

    Raises:
        RecoError: more workers than the cluster can have, or a GPU is asked for and there is none.
    """
    count = settings.train.workers
    nodes = node_resources() if nodes is None else nodes
    total, largest = total_resources(nodes), max(int(node.get("CPU", 1)) for node in nodes)
    cores, gpus = int(total.get("CPU", 1)), int(total.get("GPU", 0))
    on_gpus = gpus > 0 and settings.models.device != "cpu"
    if count > (gpus if on_gpus else cores):
        has = f"{gpus} GPUs" if on_gpus else f"{cores} CPUs"
        raise NoRoomError(f"train.workers={count}: the cluster has only {has}: lower it, or add nodes")
    if on_gpus:
        return Workers(count, 1.0, 1.0, 1, "cuda"), max(1, gpus // count)
    if settings.models.device.startswith("cuda"):
        raise NoRoomError("device 'cuda' was asked for, but the cluster has no GPU: use --device cpu or auto")
    threads = max(1, min(largest, cores // (min(runs, cores) * count)))
    workers = Workers(count, threads * _WORKER_SHARE, 0.0, threads, "cpu")
    return workers, max(1, cores // (threads * count))


def count_readers(workers: Workers, free: Iterable[Mapping[str, float]] | None = None) -> int:
    """How many tasks can read for a pool at a time, none across two of the places where there is something free.

    Args:
        free: resources that the pool leaves; None = what it leaves of the connected cluster, where one goes always.
    """
    asked = {"CPU": READER_CPUS, **workers.reader_resources}
    places = list(free or [])
    if free is None:
        total = ray.cluster_resources()
        places = [{**total, "CPU": total.get("CPU", 0.0) - workers.count * workers.cpus}]
    rooms = [
        int(min(each.get(name, 0.0) / amount for name, amount in asked.items()) + 1e-9) for each in places
    ]
    return max(sum(rooms), int(free is None))
