"""Computes rates from the summaries of finished artifacts."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from reco_ray import contents
from reco_ray.contents import EmbeddingsContent, FramesContent, IndexContent, LabelsContent, MasksContent
from reco_ray.errors import UnreadableError
from reco_ray.files import artifacts, checksums, storage
from reco_ray.files.artifacts import SUMMARY, Content, Manifest
from reco_ray.planning.rate_file import ITEMS, Rate

# Kind of artifact -> content of its manifest, stage.
_STAGES: dict[str, tuple[type[Content], str]] = {
    "embeddings": (EmbeddingsContent, "embed"),
    "index": (IndexContent, "index"),
    "references": (contents.ReferencesContent, "references"),
    "masks": (MasksContent, "segment"),
    "pseudo-labels": (LabelsContent, "label"),
    "segmenter": (contents.SegmenterContent, "train"),
}


class _Run(BaseModel):
    """`this_run` of a summary, written by `Meter.run`; `items` is stored under the name of the items."""

    items: int
    parts: int
    seconds: float
    read_seconds: float
    read_cpu_seconds: float
    work_seconds: float
    readers: int
    workers: int
    threads: int
    gpus_per_worker: float
    device: str
    sets: int = 1
    context_seconds: float = 0.0
    train_seconds: float = 0.0
    train_cores: int = 0

    def fixed_seconds(self, training: float) -> float:
        """Time of the run without work that grows with its items; `training` are seconds of training that do."""
        before = self.context_seconds + training
        work = (self.work_seconds - self.context_seconds) / self.workers
        read = self.read_seconds / self.readers if self.readers else 0.0
        return max(0.0, self.seconds - before - max(work, read))


@dataclass(frozen=True)
class _MeasuredRun:
    """An artifact and the last run that worked on it.

    settings: those that determine the rate. total: items of the artifact, to which several runs may have contributed.
    size: bytes. dim: dimensions of the embeddings. training: core-seconds per Tflop of k-means; None if unknown.
    """

    stage: str
    preset: str | None
    settings: dict[str, object]
    run: _Run
    total: int
    size: int
    dim: int | None
    training: float | None
    made: str

    @property
    def fixed(self) -> float:
        """Seconds that do not grow with the items.

        Without a rate of k-means, training is included: rotations and codes are learnt from the same number of vectors
        for every corpus, and take far longer than the lists of a small one.
        """
        return self.run.fixed_seconds(0.0 if self.training is None else self.run.train_seconds)

    @property
    def key(self) -> tuple[str, ...]:
        """Runs with the same key are combined into one rate."""
        return self.stage, str(self.preset), self.run.device, json.dumps(self.settings, sort_keys=True)


def measure(artifacts: Iterable[str], machine: str | None = None) -> list[Rate]:
    """Computes the rates of artifacts; runs with the same stage, preset, settings and device give one rate.

    Args:
        artifacts: URIs of artifacts.
        machine: Description of the machine, stored in the rates.

    Raises:
        RecoError: If an artifact is unfinished, of a stage without rates, or its last run cannot be used.
    """
    groups: dict[tuple[str, ...], list[_MeasuredRun]] = {}
    for artifact in artifacts:
        one = _read(artifact)
        groups.setdefault(one.key, []).append(one)
    return [_rate(group, machine) for group in groups.values()]


def _rate(runs: list[_MeasuredRun], machine: str | None) -> Rate:
    first = runs[0]
    items, total = sum(one.run.items for one in runs), sum(one.total for one in runs)
    cpu = first.run.device == "cpu"
    compute = sum(r.run.work_seconds * (r.run.threads if cpu else r.run.gpus_per_worker) for r in runs)
    size = sum(one.size for one in runs)
    training = [one.training for one in runs if one.training is not None]
    grows = first.stage != "train"  # the size of a segmenter does not depend on the number of steps
    return Rate(
        stage=first.stage,
        preset=first.preset,
        device=first.run.device,
        settings=first.settings,
        compute_seconds=_rounded(compute / items),
        threads=max(one.run.threads for one in runs),
        reader_seconds=_rounded(sum(one.run.read_seconds for one in runs) / items),
        reader_cpu_seconds=_rounded(sum(one.run.read_cpu_seconds for one in runs) / items),
        fixed_seconds=_rounded(sum(one.fixed for one in runs) / len(runs)),
        bytes_per_item=_rounded(size / total) if grows else 0.0,
        fixed_bytes=0.0 if grows else _rounded(size / len(runs)),
        dim=first.dim,
        training_core_seconds=_rounded(sum(training) / len(training)) if training else None,
        source="; ".join(one.made for one in runs),
        machine=machine,
    )


def _read(artifact: str) -> _MeasuredRun:
    kind = artifacts.read_manifest(artifact, Content).kind
    if kind not in _STAGES:
        stages = ", ".join(stage for _, stage in _STAGES.values())
        raise UnreadableError(f"{artifact}: holds {kind}: rates exist for {stages} only")
    content_class, stage = _STAGES[kind]
    manifest = artifacts.read_manifest(artifact, content_class)
    content = manifest.content
    if isinstance(content, MasksContent) and content.segmenter is not None:
        stage = "segment-trained"
    again = "make the artifact again with this version"
    try:
        summary = json.loads(storage.read_bytes(storage.join(artifact, SUMMARY)))
        items = ITEMS[stage]
        run = _Run.model_validate({**summary["this_run"], "items": summary["this_run"][items]})
        total = summary["counts"][items]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise UnreadableError(f"{artifact}: has no {SUMMARY} with the time of its run: {again}") from error
    if run.items < 1 or total < 1 or run.workers < 1 or run.work_seconds <= 0:
        raise UnreadableError(
            f"{artifact}: its last run only finished an interrupted one: measure a run that was not interrupted"
        )
    if run.sets > 1:
        raise UnreadableError(
            f"{artifact}: was made together with others: measure a run with one --references or --segmenter"
        )
    if manifest.checksums is None:
        raise UnreadableError(f"{artifact}: has no checksums, from which its size is computed: {again}")
    workers = f"{_counted(run.workers, 'worker')} of {_counted(run.threads, 'thread')}"
    took = f"{run.items:,} {items} in {_counted(run.parts, 'part')}, {run.seconds} s by {workers}"
    return _MeasuredRun(
        stage=stage,
        preset=summary.get("preset"),
        settings=summary["settings"],
        run=run,
        total=total,
        size=_size(artifact, manifest),
        dim=content.dim if isinstance(content, EmbeddingsContent | IndexContent) else None,
        training=_training(run, manifest),
        made=f"{took}, {manifest.made_at}, {manifest.made_by}",
    )


def _size(artifact: str, manifest: Manifest) -> int:
    """Bytes that a stage wrote and that grow with its items.

    Of an index only the tables of images, as the codes are computed from its kind; of masks all but the page.
    """
    content = manifest.content
    if isinstance(content, IndexContent | MasksContent):
        files = storage.read_table(storage.join(artifact, checksums.FILE)).to_pylist()
        grows = (
            "images/"
            if isinstance(content, IndexContent)
            else ("masks/", "overlays/", "regions/", "images.parquet")
        )
        return sum(file["size"] for file in files if file["path"].startswith(grows))
    sealed = [manifest.checksums]
    if isinstance(content, LabelsContent):
        sealed.append(artifacts.read_manifest(content.frames, FramesContent).checksums)
    return sum(each.bytes for each in sealed if each is not None)


def _training(run: _Run, manifest: Manifest) -> float | None:
    """Core-seconds per Tflop of k-means; None if there was none, a GPU did it, or codes were trained as well."""
    content, sample = manifest.content, manifest.made_from.get("index.sample")
    if not isinstance(content, IndexContent) or not run.train_cores or not sample or "PQ" in content.factory:
        return None
    from reco_ray.config import IndexSettings
    from reco_ray.corpus.index.index_plan import make_plan

    settings = IndexSettings(factory=content.factory, sample=sample)
    plan = make_plan(manifest.counts["images"], content.dim, settings, [])
    return run.train_seconds * run.train_cores / (plan.training_operations / 1e12)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
