"""Plans pools of workers: how many of which size the cluster has room for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import ray

from reco_ray.config import Settings, StagePlacement
from reco_ray.errors import NoRoomError
from reco_ray.presentation.console import console


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
        NoRoomError: "cuda" is asked for and the cluster has no GPU, or no node has a custom resource.
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


def report_missing_resources(workers: Workers) -> None:
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
        NoRoomError: more workers than the cluster can have, or a GPU is asked for and there is none.
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
