"""Estimates the time and storage of a stage on given nodes:

    seconds of work     = items x compute seconds / (workers x threads, or workers x share of a GPU)
    seconds of reading  = items x reader seconds / readers, or x their CPU seconds / free CPUs of a GPU cluster
    hours               = (fixed seconds + the longer of the two) / 3600
    GPU-hours           = hours x workers x share of a GPU
    storage             = fixed bytes + items x bytes per item; for an index, by its kind

docs/planning.md lists what the estimate leaves out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reco_ray.config import StagePlacement
from reco_ray.corpus.index.index_plan import MAX_SHARDS, SHARD_SIZE, IndexPlan, make_plan
from reco_ray.corpus.index.vectors import Part
from reco_ray.distributed.timing import decisive_settings
from reco_ray.distributed.workers import READER_CPUS, Workers, count_readers, plan_runs, plan_workers
from reco_ray.errors import NoRoomError, RecoError
from reco_ray.planning.nodes import Nodes, list_nodes, place
from reco_ray.planning.rate_file import ITEMS, Rate
from reco_ray.planning.workload import Workload


@dataclass(frozen=True)
class Estimate:
    """The estimate of one stage; None where there is no rate to compute a value from.

    Attributes:
        name: Name of the stage as printed.
        items: Number of items: images, concepts or steps.
        workers: Number of workers.
        hours: Duration.
        gpu_hours: Hours times GPUs in use.
        gigabytes: Storage.
        bottleneck: The longest of "workers", "readers", "k-means" and "fixed", or the rate that is missing.
    """

    name: str
    items: int | None
    workers: int | None
    hours: float | None
    gpu_hours: float | None
    gigabytes: float | None
    bottleneck: str


def estimate(work: Workload, rates: Sequence[Rate], nodes: Sequence[Nodes], images: int) -> Estimate:
    """Estimates a stage for a number of images.

    Raises:
        NoRoomError: If no node has the resources of a worker.
    """
    if work.stage not in ITEMS:
        return Estimate(work.name, None, None, None, None, None, f"no rates of {work.stage}")
    try:
        if work.stage == "index":
            return _index(work, rates, nodes, images)
        if work.stage == "train":
            return _train(work, rates, nodes)
        return _pool(work, rates, nodes, images)
    except RecoError as error:
        raise type(error)(f"stage {work.name}: {error}") from error


def _pool(work: Workload, rates: Sequence[Rate], nodes: Sequence[Nodes], images: int) -> Estimate:
    """Estimates a stage in which tasks read parts and a pool of workers computes them."""
    settings = work.settings
    items = work.concepts if work.stage == "references" else images * work.sets
    part = {"embed": settings.embed.shard_size, "references": 1}.get(work.stage, settings.segment.shard_size)
    most = max(1, math.ceil((items - work.context) / part))
    placement: StagePlacement = getattr(settings.placement, work.stage.removesuffix("-trained"))
    workers = plan_workers(settings.models.device, most, placement, list_nodes(nodes))
    count, free = _place_workers(workers, nodes)
    readers = count_readers(workers, free)
    if not readers:
        asked = {"CPU": READER_CPUS, **workers.reader_resources}
        raise NoRoomError(f"no node has room for a reader, which needs {_named(asked)}, beside the workers")
    rate, sized, missing = _find(work.stage, decisive_settings(work.stage, settings), workers.device, rates)
    size = None if sized is None else (sized.fixed_bytes + items * sized.bytes_per_item) / 1e9
    if rate is None:
        return Estimate(work.name, items, count, None, None if workers.gpus else 0.0, size, missing)
    power = workers.gpus if workers.device == "cuda" else workers.threads
    seconds = {
        "workers": rate.compute_seconds * (work.context + (items - work.context) / count) / power,
        "readers": rate.reader_seconds * items / readers,
        "fixed": rate.fixed_seconds * (work.sets if work.stage == "references" else 1),
    }
    if workers.device == "cuda":  # on CPUs, readers and workers share cores, which the measured rate includes
        cpus = max(0.01, sum(each.get("CPU", 0.0) for each in free))
        seconds["readers"] = max(seconds["readers"], rate.reader_cpu_seconds * items / cpus)
    hours = (seconds["fixed"] + max(seconds["workers"], seconds["readers"])) / 3600
    note = "" if count == workers.count else f"; {count} of {workers.count} workers fit"
    slowest = max(seconds, key=seconds.__getitem__)
    return Estimate(work.name, items, count, hours, hours * count * workers.gpus, size, slowest + note)


def _index(work: Workload, rates: Sequence[Rate], nodes: Sequence[Nodes], images: int) -> Estimate:
    """Estimates the index for a number of images: one task trains it, one task per shard adds vectors."""
    retrieval = work.settings.models.retrieval
    dims = {r.dim for r in rates if r.stage == "embed" and r.settings.get("models.retrieval") == retrieval}
    dim = next((dim for dim in dims if dim is not None), None)
    if dim is None:
        return Estimate(
            work.name, images, None, None, None, None, f"no rate of embed with {retrieval}: dim unknown"
        )
    size = work.settings.index.shard_size or max(SHARD_SIZE, -(-images // MAX_SHARDS))
    rows = [min(size, images - start) for start in range(0, images, size)]
    plan = make_plan(images, dim, work.settings.index, [Part(f"{n}", each) for n, each in enumerate(rows)])
    wanted = {"index.kind": plan.kind, "dim": dim}
    rate, _, missing = _find("index", wanted, "cpu", rates)
    cpus = sum(each.count * each.resources.get("CPU", 0.0) for each in nodes)
    if cpus < 1:
        raise NoRoomError("a task needs CPU=1, which no node has")
    tasks = min(len(plan.shards), int(cpus)) if plan.needs_cluster else 1
    bytes_ = _index_bytes(plan, rates)
    # Training of the lists does not depend on the kind of index.
    trained = [r.training_core_seconds for r in rates if r.stage == "index" and r.settings.get("dim") == dim]
    training = next((seconds for seconds in trained if seconds is not None), None)
    if rate is None or (plan.centroids and training is None):
        return Estimate(
            work.name, images, tasks, None, 0.0, bytes_, missing or f"no rate of training {plan.kind}"
        )
    cores = max(node.resources.get("CPU", 0.0) for node in nodes)
    seconds = {
        "k-means": plan.training_operations / 1e12 * (training or 0.0) / cores,
        "workers": images * rate.compute_seconds / tasks,
        "fixed": rate.fixed_seconds,
    }
    slowest = max(seconds, key=seconds.__getitem__)
    return Estimate(work.name, images, tasks, sum(seconds.values()) / 3600, 0.0, bytes_, slowest)


def _index_bytes(plan: IndexPlan, rates: Sequence[Rate]) -> float | None:
    """GB of the codes and centroids, by the kind of index, and of the table of images, the same for all kinds."""
    tables = [rate.bytes_per_item for rate in rates if rate.stage == "index"]
    if not tables:
        return None
    return (plan.images * (plan.bytes_per_vector + max(tables)) + plan.fixed_bytes) / 1e9


def _train(work: Workload, rates: Sequence[Rate], nodes: Sequence[Nodes]) -> Estimate:
    settings = work.settings
    plan = plan_runs(work.sets, settings, list_nodes(nodes))
    workers, steps, at_once = plan.workers, settings.train.steps, min(plan.at_once, work.sets)
    _place_workers(workers, nodes)
    rate, sized, missing = _find("train", decisive_settings("train", settings), workers.device, rates)
    size = None if sized is None else work.sets * sized.fixed_bytes / 1e9
    items, count = steps * work.sets, workers.count * at_once
    if rate is None:
        return Estimate(work.name, items, count, None, None if workers.gpus else 0.0, size, missing)
    # More threads than measured are assumed not to help, as batches are small.
    power = workers.gpus if workers.device == "cuda" else min(workers.threads, rate.threads)
    rounds = math.ceil(work.sets / at_once)
    seconds = {
        "workers": rounds * steps * rate.compute_seconds / (workers.count * power),
        "fixed": rounds * rate.fixed_seconds,
    }
    hours = sum(seconds.values()) / 3600
    slowest = max(seconds, key=seconds.__getitem__)
    return Estimate(work.name, items, count, hours, hours * count * workers.gpus, size, slowest)


def _place_workers(workers: Workers, nodes: Sequence[Nodes]) -> tuple[int, list[dict[str, float]]]:
    """Number of workers that fit on the nodes, and the resources left."""
    asked = {"CPU": workers.cpus, "GPU": workers.gpus, **workers.resources}
    count, free = place(nodes, asked, workers.count)
    if not count:
        raise NoRoomError(f"no node has room for a worker, which needs {_named(asked)}")
    return count, free


def _named(asked: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in asked.items() if amount)


def _find(
    stage: str, wanted: dict[str, object], device: str, rates: Sequence[Rate]
) -> tuple[Rate | None, Rate | None, str]:
    """The rate of a stage with these settings on a device; one on any device, for its bytes; and what is missing."""
    known = [rate for rate in rates if rate.stage == stage]
    fitting = [rate for rate in known if rate.settings == wanted]
    found = next((rate for rate in fitting if rate.device == device), None)
    sized = found or next(iter(fitting), None)
    if found:
        return found, sized, ""
    if fitting:
        return None, sized, f"no rate on {device}, only on {fitting[0].device}"
    if not known:
        return None, None, f"no rate of {stage}"
    differing = [[n for n in wanted if rate.settings.get(n) != wanted[n]] for rate in known]
    closest = min(differing, key=len)
    measured = known[differing.index(closest)].settings
    shown = [f"{n}={wanted[n]} (measured: {measured.get(n)})" for n in closest[:2]]
    return None, None, f"no rate with {', '.join(shown)}{', ...' if len(closest) > 2 else ''}"
