"""Plans pools of workers: how many of which size the cluster has room for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor

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
    """Chooses the pool for the connected cluster: one worker per GPU, or single-threaded workers over the CPUs.

    One thread per worker wastes least on small machines (two workers of one thread beat one of two by a tenth);
    from eight cores on, four threads per worker keep the number of loaded models down, where a node has as many.
    The pool always leaves CPUs for a task that reads.

    Args:
        device: "auto", "cpu" or "cuda".
        most: an upper bound on the number of workers, e.g. the number of shards.
        placement: what the workers ask for. With `workers` named, that many are asked for, also where the nodes for
            them are still to be started by an autoscaler.
        nodes: the resources of each node of a cluster to plan for; None = the connected one.

    Raises:
        NoRoomError: "cuda" is asked for and the cluster has no GPU, no node has a custom resource, or no node has room
            for a worker.
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
        share, threads, kind = placement.gpus_per_worker or 1.0, 1, "cuda"
        reserved = placement.cpus_per_worker
        if reserved is None:
            reserved = _cpus_per_gpu_worker(nodes, share)
    else:
        share, threads, kind = 0.0, 4 if cpus > 8 and max(n.get("CPU", 0) for n in nodes) >= 4 else 1, "cpu"
        reserved = threads * _WORKER_SHARE
        if placement.cpus_per_worker is not None:
            reserved = placement.cpus_per_worker
            threads = max(1, round(reserved))
    spread = reserved if share or placement.cpus_per_worker else threads  # cores that a worker uses
    if placement.workers is None:
        room = _room(nodes, share, spread)
        for name, amount in placement.worker_resources.items():
            room = min(room, int(resources.get(name, 0.0) / amount + 1e-9))
        for name in placement.worker_resources | placement.reader_resources:
            if name not in resources:
                raise NoRoomError(
                    f"placement asks for the resource {name!r}, which no node has: start one with it, or name the "
                    "number of workers if an autoscaler is to start it"
                )
        # Readers that find no CPU would wait for ever.
        room = min(room, int((cpus - READER_CPUS) / reserved + 1e-9)) if reserved else room
        if not room:
            raise _no_room(nodes, share, reserved, placement)
    count = placement.workers or room
    return Workers(
        count=min(count, most or count),
        cpus=reserved,
        gpus=share,
        threads=threads,
        device=kind,
        resources=dict(placement.worker_resources),
        reader_resources=dict(placement.reader_resources),
    )


def _workers_by_gpus(node: Mapping[str, float], share: float) -> int:
    """How many workers the GPUs of a node have room for; several workers share one GPU, or one takes several."""
    gpus = int(node.get("GPU", 0))
    return gpus * int(1 / share + 1e-9) if share < 1 else int(gpus // share)


def _cpus_per_gpu_worker(nodes: Sequence[Mapping[str, float]], share: float) -> float:
    """CPUs that a GPU worker reserves: one, or less where a node has too few to leave some for readers."""
    return _floored(min([1.0, *(_WORKER_SHARE * cores for cores in _cores_per_gpu_worker(nodes, share))]))


def _cores_per_gpu_worker(nodes: Sequence[Mapping[str, float]], share: float) -> list[float]:
    """Of every node with GPUs, how many CPUs there are for each of the workers that its GPUs have room for."""
    return [
        node["CPU"] / count for node in nodes if node.get("CPU") and (count := _workers_by_gpus(node, share))
    ]


def _floored(amount: float) -> float:
    """The next lower amount that Ray can count, in steps of 0.0001."""
    return floor(amount * 1e4) / 1e4


def _room(nodes: Sequence[Mapping[str, float]], gpus: float, cpus: float) -> int:
    """How many workers of so many GPUs and CPUs the nodes have room for, none across two nodes."""
    rooms = []
    for node in nodes:
        limits = [_workers_by_gpus(node, gpus)] if gpus else []
        if cpus:
            limits.append(int(node.get("CPU", 0.0) / cpus + 1e-9))
        rooms.append(min(limits))
    return sum(rooms)


def _no_room(
    nodes: Sequence[Mapping[str, float]], gpus: float, cpus: float, placement: StagePlacement
) -> NoRoomError:
    """Says what a worker needs, what the largest node has, and which settings lower the need."""
    needs = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    has = max(nodes, key=lambda node: (node.get("GPU", 0.0) if gpus else 0.0, node.get("CPU", 0.0)))
    largest = f"{has.get('CPU', 0.0):g} CPUs" + (f" and {has.get('GPU', 0.0):g} GPUs" if gpus else "")
    asked = [name for name in ("gpus_per_worker", "cpus_per_worker") if getattr(placement, name) is not None]
    remedy = f"lower {' or '.join(asked)} of its placement, or " if asked else ""
    return NoRoomError(
        f"no node has room for a worker, which needs {needs}, beside a reader with {READER_CPUS:g} CPUs; the largest "
        f"has {largest}: {remedy}add a larger node"
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


@dataclass(frozen=True)
class RunPlan:
    """How training runs share a cluster.

    Attributes:
        workers: of one run.
        at_once: runs side by side.
        feeders: actors per worker that prepare its crops.
    """

    workers: Workers
    at_once: int
    feeders: int


def plan_runs(runs: int, settings: Settings, nodes: Sequence[Mapping[str, float]] | None = None) -> RunPlan:
    """Chooses the workers of training runs: a GPU each where there are any, else cores shared evenly among the runs.

    No worker has cores of two nodes.

    Args:
        runs: number of runs.
        settings: of the runs.
        nodes: as of `plan_workers`.

    Raises:
        NoRoomError: more workers than the cluster can have, a GPU is asked for and there is none, or no node has room
            for a worker and its feeders.
    """
    count, placement = settings.train.workers, settings.placement.train
    nodes = node_resources() if nodes is None else nodes
    total, largest = total_resources(nodes), max(int(node.get("CPU", 1)) for node in nodes)
    cores, gpus = int(total.get("CPU", 1)), int(total.get("GPU", 0))
    awaited = placement.workers is not None and placement.gpus_per_worker is not None
    if settings.models.device != "cpu" and (gpus or awaited):
        workers = plan_workers(settings.models.device, None, placement, nodes)
        if count > workers.count:
            raise NoRoomError(
                f"train.workers={count}: the cluster has room for only {workers.count} with "
                f"{workers.gpus:g} GPUs each: lower it, or add nodes"
            )
        each_has = min(_cores_per_gpu_worker(nodes, workers.gpus), default=workers.cpus + 1.0)
        cpus = workers.cpus
        if placement.cpus_per_worker is None:
            cpus = min(cpus, max(0.0, _floored(each_has - READER_CPUS)))
        feeders = settings.train.feeders or max(1, round(each_has - cpus))
        if cpus + feeders * READER_CPUS > each_has + 1e-9:
            raise NoRoomError(
                f"training needs {cpus:g} CPUs per GPU and {READER_CPUS:g} for each of {feeders} feeders, and a node "
                f"has only {each_has:g}: add CPUs, or lower train.feeders or placement.train.cpus_per_worker"
            )
        return RunPlan(replace(workers, count=count, cpus=cpus), max(1, workers.count // count), feeders)
    if count > cores:
        raise NoRoomError(f"train.workers={count}: the cluster has only {cores} CPUs: lower it, or add nodes")
    if settings.models.device.startswith("cuda"):
        raise NoRoomError("device 'cuda' was asked for, but the cluster has no GPU: use --device cpu or auto")
    threads = max(1, min(largest, cores // (min(runs, cores) * count)))
    workers = Workers(count, threads * _WORKER_SHARE, 0.0, threads, "cpu", dict(placement.worker_resources))
    return RunPlan(workers, max(1, cores // (threads * count)), settings.train.feeders or 1)


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
