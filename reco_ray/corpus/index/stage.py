"""The index stage: plans the index, trains it once, adds shards in parallel on Ray, measures recall, commits.

The artifact holds:

- `trained/`: the empty index, the queries that measure recall, and their fingerprint
- `shards/<name>.faiss`: a copy of the trained index with the vectors of some rows; `<name>.json`, its record, is
  written last and marks it as complete
- `images/<name>.parquet`: `image_id`, `uri`, `width` and `height` of these rows
- `answers/<name>.safetensors`: the shard's answers to the queries, exact and with each nprobe

Shards are not merged: a search queries all of them and merges the answers. So vectors are written once, no node holds
the whole index, and a run that is resumed keeps all completed shards.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reco_ray.config import IndexSettings
from reco_ray.contents import EmbeddingsContent, ExactRecall, IndexContent, Recall, ShardRecord
from reco_ray.corpus.index.index_plan import IndexPlan, Shard, plan_index
from reco_ray.corpus.index.recall import measure, merge_answers
from reco_ray.corpus.index.tasks import (
    add_shard,
    answers_of,
    queries_of,
    record_of,
    train,
    trained_fingerprint,
)
from reco_ray.distributed.timing import Meter, write_summary
from reco_ray.distributed.workers import Workers, node_resources, total_resources
from reco_ray.errors import RecoError, SettingError, UnreadableError, pack, unpack
from reco_ray.faiss_library import load_faiss
from reco_ray.files import artifacts, storage
from reco_ray.files.replacing import clear_outdated
from reco_ray.outcome import Outcome
from reco_ray.presentation.console import progress

_RETRIES = 5
T = TypeVar("T")
_OWN = re.compile(
    r"trained/(empty\.faiss|queries\.safetensors|fingerprint)|shards/\d{6,}\.(faiss|json)|images/\d{6,}\.parquet"
    r"|answers/\d{6,}\.safetensors"
)


def build_index(
    embeddings: str,
    out: str,
    settings: IndexSettings | None = None,
    plan: IndexPlan | None = None,
    renew: bool = False,
) -> Outcome:
    """Builds the index of an embeddings artifact, on the connected Ray cluster if the plan needs one.

    Args:
        embeddings: URI of the embeddings.
        out: URI of the index.
        settings: Settings of the index; None for the defaults.
        plan: Result of `plan_index` for the same embeddings and settings; None to compute it.
        renew: replace an index that `out` holds of other embeddings or with other settings.

    Raises:
        RecoError: If the embeddings or settings do not fit, the output cannot be written, rows are missing, or recall
            is below `index.min_recall`.
    """
    settings = settings or IndexSettings()
    load_faiss()
    source = artifacts.read_manifest(embeddings, EmbeddingsContent)
    embeddings = storage.absolute(embeddings)
    plan = plan or plan_index(embeddings, settings)
    inputs = {
        "embeddings": embeddings,
        "embeddings_made_at": source.made_at,
        "model": source.content.model,
    }
    chosen = {
        "index.factory": plan.factory,
        "index.sample": plan.sample,
        "index.nprobe": settings.nprobe,
        "index.target_recall": settings.target_recall,
        "shards": len(plan.shards),
    }
    # Without a cluster no setting changes the content.
    writer = artifacts.ArtifactWriter(out, IndexContent, inputs | chosen if plan.needs_cluster else inputs)
    if renew:
        clear_outdated(writer, "index", lambda path: _OWN.fullmatch(path) is not None)
    if manifest := writer.finished():
        return Outcome("index", writer.uri, manifest, new=False)
    records, took = build_shards(embeddings, writer.uri, plan)
    counted = sum(record.images for record in records)
    if counted != plan.images or any(r.images != s.rows for r, s in zip(records, plan.shards, strict=True)):
        raise UnreadableError(
            f"{writer.uri}: the shards hold {counted:,} vectors, the embeddings {plan.images:,}: "
            "delete it and index again"
        )
    nprobe, recall = measure_recall(writer.uri, plan)
    content = IndexContent(
        dim=plan.dim,
        model=source.content.model,
        factory=plan.factory,
        shards=records,
        nprobe=nprobe,
        recall=recall,
    )
    counts = {"images": counted}
    write_summary(writer.uri, "index", counts, took, {"index.kind": plan.kind, "dim": plan.dim})
    return Outcome("index", writer.uri, writer.commit(counts, content))


def build_shards(
    embeddings: str, out: str, plan: IndexPlan
) -> tuple[list[ShardRecord], dict[str, float | str]]:
    """Trains if necessary and adds the missing shards; returns all records in order, and the measured times."""
    meter, training = Meter(), 0.0
    fingerprint = trained_fingerprint(out)
    if fingerprint is None:
        fingerprint = _train(embeddings, out, plan)
        training = meter.seconds
    records = {shard.name: record_of(out, shard, fingerprint) for shard in plan.shards}
    pending = [shard for shard in plan.shards if records[shard.name] is None]
    done = plan.images - sum(shard.rows for shard in pending)
    with progress("index", plan.images, done) as advance:
        for record in _add(embeddings, out, plan, pending, fingerprint, meter):
            records[record.name] = record
            advance(record.images)
    cores, tasks = _training_cores_and_tasks(plan, len(pending))
    run = meter.run(Workers(tasks, 1.0, 0.0, 1, "cpu"), readers=0)
    took = {"images": plan.images - done, **run, "train_seconds": round(training, 3), "train_cores": cores}
    return [record for record in records.values() if record is not None], took


def _training_cores_and_tasks(plan: IndexPlan, shards: int) -> tuple[int, int]:
    """Number of cores that train (0 if a GPU trains), and of tasks that add shards in parallel."""
    if not plan.needs_cluster:
        return os.cpu_count() or 1, 1
    nodes = node_resources()
    largest = max(node.get("CPU", 1) for node in nodes)
    tasks = max(1, min(shards, int(total_resources(nodes).get("CPU", 1))))
    return 0 if _trains_on_gpu() else int(largest), tasks


def _trains_on_gpu() -> bool:
    return hasattr(load_faiss(), "StandardGpuResources") and ray.cluster_resources().get("GPU", 0) > 0


def _train(embeddings: str, out: str, plan: IndexPlan) -> str:
    if not plan.needs_cluster:
        return train(embeddings, out, plan)
    # k-means uses all cores of its node, preferably the largest: nothing else runs at this time.
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    largest = max(nodes, key=lambda node: node["Resources"]["CPU"])
    # The GPU is given here, not in `options`: only then does Ray end the process, and free the GPU, after the task.
    resources: dict[str, Any] = {
        "num_cpus": 1,
        "num_gpus": 1 if _trains_on_gpu() else 0,
        "max_retries": _RETRIES,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(largest["NodeID"], soft=True),
    }
    task = ray.remote(**resources)(_remote_train)
    return _unwrap(ray.get(task.remote(embeddings, out, plan)))


def _add(
    embeddings: str, out: str, plan: IndexPlan, pending: list[Shard], fingerprint: str, meter: Meter
) -> Iterator[ShardRecord]:
    if not plan.needs_cluster:
        for shard in pending:
            record, seconds = _timed(embeddings, out, plan, shard, fingerprint)
            meter.add(0.0, 0.0, seconds)
            yield record
        return
    # A shard is in memory twice while it is written. A request for more memory than a node has would never be
    # scheduled.
    needed = 2 * plan.bytes_per_vector * max((shard.rows for shard in pending), default=0)
    most = max(node.get("memory", 0) for node in node_resources())
    task = _remote_add.options(memory=int(min(needed, most / 2)))
    light = replace(plan, shards=())  # a task needs only its own shard
    waiting = [task.remote(embeddings, out, light, shard, fingerprint) for shard in pending]
    while waiting:
        ready, waiting = ray.wait(waiting)
        record, seconds = _unwrap(ray.get(ready[0]))
        meter.add(0.0, 0.0, seconds)
        yield record


def _timed(
    embeddings: str, out: str, plan: IndexPlan, shard: Shard, fingerprint: str
) -> tuple[ShardRecord, float]:
    start = time.perf_counter()
    return add_shard(embeddings, out, plan, shard, fingerprint), time.perf_counter() - start


def measure_recall(out: str, plan: IndexPlan) -> tuple[int | None, Recall | ExactRecall]:
    """Chooses `nprobe` and measures the recall of the whole index.

    Raises:
        SettingError: If recall is below `index.min_recall`.
    """
    if plan.exact:
        return None, ExactRecall()
    answers = [answers_of(out, shard) for shard in plan.shards]
    own = queries_of(out).own
    merged = {
        step: merge_answers([each[step] for each in answers], answers[0][step][0].shape[1])
        for step in answers[0]
    }
    nprobe, found = measure(merged, own, plan.settings.target_recall)
    worst = min(found.images, found.between)
    if worst < plan.settings.min_recall:
        raise SettingError(
            f"{out}: recall@{found.k} is {worst:.3f} with {plan.factory}, but index.min_recall is "
            f"{plan.settings.min_recall}: choose an index.factory with larger codes, or set a lower floor"
        )
    return nprobe, found


def _unwrap(answer: tuple[str | None, T]) -> T:
    error, result = answer
    if error is not None:
        raise unpack(error)
    return result


# Errors are returned as values, before the result: Ray would wrap a raised one in a traceback.


def _remote_train(embeddings: str, out: str, plan: IndexPlan) -> tuple[str | None, Any]:
    try:
        return None, train(embeddings, out, plan)
    except RecoError as error:
        return pack(error), None


@ray.remote(num_cpus=1, max_retries=_RETRIES)
def _remote_add(
    embeddings: str, out: str, plan: IndexPlan, shard: Shard, fingerprint: str
) -> tuple[str | None, Any]:
    try:
        return None, _timed(embeddings, out, plan, shard, fingerprint)
    except RecoError as error:
        return pack(error), None
