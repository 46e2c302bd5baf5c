"""The train stage: one segmenter per vocabulary, as many at a time as fit the cluster.

Every segmenter is a separate Ray Train run, started by a task that waits for it: a failed run does not stop others, and
a lost worker, node or driver costs the steps since the last checkpoint.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from reco_ray.config import Settings
from reco_ray.contents import LabelsContent, SegmenterContent
from reco_ray.distributed.timing import Meter, write_summary
from reco_ray.distributed.workers import RunPlan, Workers, plan_runs
from reco_ray.errors import OtherModelError, RecoError, SettingError, UnreadableError, reason, unpack
from reco_ray.files import artifacts, storage
from reco_ray.files.replacing import clear_outdated
from reco_ray.outcome import Outcome
from reco_ray.training.live_table import live_table
from reco_ray.training.loop import TIMING, Job, train_worker
from reco_ray.training.records import tracking_environment
from reco_ray.training.samples import Frames, split
from reco_ray.training.trainability import require_network
from reco_ray.vocabulary import Vocabulary

POLL_SECONDS = 1.0
# Files of a segmenter, for its replacement.
_OWN = re.compile(
    r"weights\.safetensors|curve\.parquet|(progress|failed|mlflow|timing)\.json|(examples|tensorboard|checkpoints)/.+"
)


def train_segmenters(
    labels: dict[str, str],
    outs: dict[str, str],
    settings: Settings,
    vocabularies: dict[str, Vocabulary] | None = None,
    *,
    renew: bool = False,
) -> Iterator[Outcome]:
    """Trains one segmenter on each of several pseudo-labels artifacts, on the connected Ray cluster.

    Args:
        labels: URIs of the pseudo-labels, by name.
        outs: URIs of the Segmenters to write, by name.
        settings: of the run.
        vocabularies: expected vocabularies of the pseudo-labels, by name.
        renew: replace segmenters of other pseudo-labels or settings.

    Yields:
        Outcomes as the runs end. Pseudo-labels that cannot be trained on come first, as outcomes with an error.

    Raises:
        RecoError: the network is unknown, or weights are missing.
    """
    jobs, writers = {}, {}
    plan, environment = require_trainer(len(labels), settings)
    workers = plan.workers
    for name, uri in labels.items():
        manifest = artifacts.read_manifest(uri, LabelsContent)
        try:
            _require_trainable(name, manifest, uri, (vocabularies or {}).get(name))
        except RecoError as error:
            yield Outcome("train", storage.absolute(outs[name]), name=name, error=error)
            continue
        jobs[name] = Job(
            name,
            storage.absolute(uri),
            manifest.content,
            storage.absolute(outs[name]),
            settings,
            workers.threads,
            plan.feeders,
            environment,
        )
        writers[name] = artifacts.ArtifactWriter(
            outs[name], SegmenterContent, _made_from(manifest, uri, settings)
        )
        if renew:
            clear_outdated(writers[name], "train", lambda path: _OWN.fullmatch(path) is not None)
    finished = {name: writer.finished() for name, writer in writers.items()}
    for name, done in finished.items():
        if done is not None:
            yield Outcome("train", writers[name].uri, done, new=False, name=name)
    pending = {name: jobs[name] for name, done in finished.items() if done is None}
    with live_table({name: job.out for name, job in pending.items()}, settings.train.steps) as table:
        for name, problem, meter in _run(pending, plan, table.refresh):
            if problem is not None:
                table.end(name, "failed")
                yield Outcome("train", writers[name].uri, name=name, error=problem)
                continue
            table.end(name, "done")
            trained = _commit(writers[name], jobs[name], workers, meter)
            yield Outcome("train", writers[name].uri, trained, name=name)


def require_trainer(runs: int, settings: Settings) -> tuple[RunPlan, dict[str, str]]:
    """Checks what all runs need: resources of the cluster, a network that supports the crops, MLflow if configured.

    Returns:
        How the runs share the cluster, and the environment variables of workers.

    Raises:
        RecoError: a check fails.
    """
    plan = plan_runs(runs, settings)
    environment = tracking_environment()
    if settings.train.deterministic:  # read by cuBLAS when it is first used
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    require_network(settings)
    return plan, environment


# --- before -------------------------------------------------------------------------------------------------


def _require_trainable(
    name: str, manifest: artifacts.Manifest[LabelsContent], uri: str, vocabulary: Vocabulary | None
) -> None:
    content = manifest.content
    # Chosen images change the labels, but not what they mean.
    if vocabulary is not None and vocabulary.without_chosen() != content.vocabulary.without_chosen():
        theirs = ", ".join(content.labels[:5])
        raise OtherModelError(f"{name}: {uri} holds pseudo-labels of another vocabulary ({theirs}, ...)")
    pixels = content.pixels
    if not any(pixels.values()):
        raise SettingError(f"{name}: every pseudo-label is ignored: lower train.min_score")
    empty = [label for label, count in pixels.items() if not count and label != "background"]
    if empty:
        raise UnreadableError(
            f"{name}: no pixel is labelled {', '.join(map(repr, empty[:5]))}: remove it from the vocabulary, or add "
            "images that show it"
        )
    if manifest.counts["images"] < 2:
        raise RecoError(f"{name}: one image is not enough: one is held out, at least one more is needed")


def _made_from(manifest: artifacts.Manifest, uri: str, settings: Settings) -> dict[str, object]:
    return {
        "labels": storage.absolute(uri),
        "labels_made_at": manifest.made_at,
        "seed": settings.seed,
        **settings.named("train", without=("in_run", "workers", "feeders", "retries", "min_score", "refine")),
    }


# --- meanwhile ----------------------------------------------------------------------------------------------


def _run(jobs: dict[str, Job], plan: RunPlan, refresh: Any) -> Iterator[tuple[str, RecoError | None, Meter]]:
    """Runs `plan.at_once` jobs at a time; yields name, error or None, and meter of each job as it ends."""
    waiting = list(jobs.values())
    running: dict[ray.ObjectRef, str] = {}
    meters: dict[str, Meter] = {}
    try:
        while waiting or running:
            while waiting and len(running) < plan.at_once:
                job = waiting.pop(0)
                storage.remove(storage.join(job.out, "failed.json"))
                meters[job.name] = Meter()
                running[_run_one.remote(job, plan.workers)] = job.name
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            refresh()
            for reference in ready:
                name = running.pop(reference)
                try:
                    yield name, ray.get(reference), meters[name]
                except RayError as error:
                    yield name, RecoError(f"{name}: {reason(error)}"), meters[name]
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


@ray.remote(num_cpus=0, max_retries=3, retry_exceptions=[RayActorError])  # type: ignore[call-overload]
def _run_one(job: Job, workers: Workers) -> RecoError | None:
    """Waits for one Ray Train run, resumed if it was interrupted; returns why it failed, or None.

    The task is retried if its node or Ray Train's controller is lost.
    """
    options = job.settings.train
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={
                "CPU": workers.cpus,
                **({"GPU": workers.gpus} if workers.gpus else {}),
                **workers.resources,
            },
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees version 1 of Ray Train
            name="checkpoints",
            storage_path=job.out,
            failure_config=FailureConfig(max_failures=options.retries),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            worker_runtime_env={"env_vars": job.environment} if job.environment else None,
        ),
    )
    error = None
    try:
        trainer.fit()
    except RayActorError:
        raise
    except Exception as raised:  # errors of Ray Train, with the cause in their text
        error = RecoError(f"{job.name}: {_last_line(raised)}")
    failed = storage.join(job.out, "failed.json")
    if storage.exists(failed):
        return unpack(storage.read_bytes(failed).decode())
    return error


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


# --- after --------------------------------------------------------------------------------------------------


def _commit(
    writer: artifacts.ArtifactWriter[SegmenterContent], job: Job, workers: Workers, meter: Meter
) -> artifacts.Manifest[SegmenterContent]:
    curve = storage.read_table(storage.join(job.out, "curve.parquet")).to_pylist()
    best = max(curve, key=lambda entry: entry["agreement"])
    content = SegmenterContent(
        architecture=job.settings.train.segmenter,
        labels=job.labels.labels,
        background=job.labels.background,
        vocabulary=job.labels.vocabulary,
        image_size=job.settings.train.image_size,
        best_step=best["step"],
        agreement=round(best["agreement"], 4),
    )
    sizes = Frames.open(job.labels.frames, job.labels_uri).sizes
    trained, held_out = split(sizes, job.settings.train.held_out, job.settings.seed)
    storage.remove(storage.join(job.out, "progress.json"))
    counts = {"steps": curve[-1]["step"], "images": len(trained), "held_out": len(held_out)}
    trained_now = json.loads(storage.read_bytes(storage.join(job.out, TIMING)))
    storage.remove(storage.join(job.out, TIMING))
    for _ in range(workers.count):
        meter.add(0.0, 0.0, trained_now["seconds"])
    run = {"steps": trained_now["steps"], **meter.run(workers, readers=0)}
    write_summary(writer.uri, "train", counts, run, job.settings)
    return writer.commit(counts, content)
