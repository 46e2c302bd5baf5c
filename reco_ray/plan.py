"""What a pipeline will take on a cluster: from rates that were measured, by a formula one can do by hand.

    throughput = min(workers / seconds of a worker, readers / seconds of a reader)     items a second
    hours      = (fixed seconds + items / throughput) / 3600
    GPU-hours  = hours x workers x share of a GPU
    storage    = fixed bytes + items x bytes an item

An item is an image; of `references` a concept. docs/planning.md says what this leaves out.
"""

from dataclasses import dataclass

import pyarrow.fs as pafs
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from reco_ray import storage
from reco_ray.cluster import READER_CPUS, plan_workers
from reco_ray.config import Settings, StagePlacement
from reco_ray.errors import RecoError, reason
from reco_ray.pipeline import Step

STAGE_OF = {"embeddings": "embed", "index": "index", "references": "references", "masks": "segment"}
ITEMS = {"embed": "images", "index": "images", "references": "concepts", "segment": "images"}


class Rate(BaseModel):
    """One measurement of a stage, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    preset: str
    device: str = Field(description="cpu or cuda")
    worker_seconds: float = Field(gt=0, description="an item keeps one worker busy")
    reader_seconds: float = Field(default=0.0, ge=0, description="an item keeps one reader busy")
    fixed_seconds: float = Field(default=0.0, ge=0, description="start of the workers, and the like")
    bytes_per_item: float = Field(ge=0)
    source: str = Field(description="the run that was measured")
    machine: str


def read_rates(file: str) -> list[Rate]:
    """The rates of a file.

    Raises:
        RecoError: unreadable, or not a list of rates.
    """
    try:
        return TypeAdapter(list[Rate]).validate_python(yaml.safe_load(storage.read_bytes(file)))
    except (OSError, yaml.YAMLError) as error:
        raise RecoError(f"{file}: the rates cannot be read: {reason(error)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise RecoError(f"{file}: rate {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error


def measure(
    artifact: str, preset: str, workers: int, device: str, machine: str, fixed_seconds: float = 0.0
) -> Rate:
    """The rate of the run that made an artifact, from its manifest and the size of its files.

    Args:
        workers: that ran. fixed_seconds: of the run's time that do not grow with it.

    Raises:
        RecoError: not an artifact of a stage that has rates, unfinished, or too quick to tell.
    """
    for kind, stage in STAGE_OF.items():
        try:
            manifest = storage.read_manifest(artifact, kind)
        except RecoError as error:
            if "is needed here" in str(error):
                continue
            raise
        items, seconds = manifest.counts[ITEMS[stage]], manifest.seconds - fixed_seconds
        if items < 1 or seconds <= 0:
            raise RecoError(f"{artifact}: {manifest.seconds} s tell no rate: measure a longer run")
        return Rate(
            stage=stage,
            preset=preset,
            device=device,
            worker_seconds=seconds * workers / items,
            fixed_seconds=fixed_seconds,
            bytes_per_item=size_of(artifact) / items,
            source=f"{items} {ITEMS[stage]} in {manifest.seconds} s by {workers} workers, {manifest.made_at}",
            machine=machine,
        )
    raise RecoError(f"{artifact}: there are rates of {', '.join(STAGE_OF.values())} only")


def size_of(uri: str) -> int:
    """Bytes of all files below a directory."""
    filesystem, path = storage.resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sum(info.size for info in infos if info.type == pafs.FileType.File)


def parse_nodes(texts: list[str]) -> dict[str, float]:
    """ "4xCPU=8,GPU=1" -> the resources of all nodes together.

    Raises:
        RecoError: not of this form.
    """
    total: dict[str, float] = {}
    for text in texts:
        count, x, resources = text.partition("x")
        try:
            if not x:
                count, resources = "1", text
            for part in resources.split(","):
                name, _, amount = part.partition("=")
                total[name.strip()] = total.get(name.strip(), 0.0) + int(count) * float(amount)
        except ValueError as error:
            raise RecoError(
                f"--nodes {text!r}: expected a count and resources, such as 4xCPU=8,GPU=1"
            ) from error
    return total


@dataclass(frozen=True)
class Estimate:
    """Of one stage. bottleneck: "workers", "readers", or "fixed" where starting takes longest; hours and what follows
    from them are None where there is no rate."""

    stage: str
    items: int
    hours: float | None
    gpu_hours: float | None
    gigabytes: float | None
    bottleneck: str


def estimate(
    steps: list[Step],
    settings: Settings,
    preset: str,
    rates: list[Rate],
    nodes: dict[str, float],
    images: int,
    concepts: int,
) -> list[Estimate]:
    """What each step takes for so many images.

    Raises:
        RecoError: a placement asks for what no node has.
    """
    found = []
    for step in steps:
        placement: StagePlacement = getattr(settings.placement, step.stage, StagePlacement())
        workers = plan_workers(settings.models.device, None, placement, nodes)
        count = 1 if step.stage == "index" else workers.count  # the index is built where the command runs
        device = "cpu" if step.stage == "index" else workers.device
        items = concepts if ITEMS.get(step.stage) == "concepts" else images
        rate = next((r for r in rates if (r.stage, r.preset, r.device) == (step.stage, preset, device)), None)
        if rate is None:
            found.append(Estimate(step.stage, items, None, None, None, f"no rate of {preset} on {device}"))
            continue
        free = nodes.get("CPU", 1.0) - count * workers.cpus
        readers = max(1, int(free / READER_CPUS))
        for name, amount in workers.reader_resources.items():
            readers = max(1, min(readers, int(nodes.get(name, 0) / amount)))
        work, read = items * rate.worker_seconds / count, items * rate.reader_seconds / readers
        seconds = rate.fixed_seconds + max(work, read)
        slowest = max((work, "workers"), (read, "readers"), (rate.fixed_seconds, "fixed"))[1]
        gpus = 0.0 if device == "cpu" else count * workers.gpus
        found.append(
            Estimate(
                step.stage,
                items,
                seconds / 3600,
                seconds / 3600 * gpus,
                items * rate.bytes_per_item / 1e9,
                slowest,
            )
        )
    return found
