"""Statistics of a run in its artifact's summary.json, from which `reco-ray rate` computes rates.

Summaries are never compared, so unlike manifests they may contain where the stage ran.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reco_ray.config import Settings
from reco_ray.distributed.workers import Workers
from reco_ray.files import storage
from reco_ray.files.artifacts import SUMMARY

_DENSE = (
    "models.retrieval",
    "models.language",
    "models.encoder",
    "models.affinity",
    "models.window",
    "models.window_step",
    "models.precision",
)
_SCORED = ("segment.image_size", "segment.use", "segment.refine", "segment.prefilter", "segment.calibrate")
# The settings that determine time and bytes per item: a rate is valid for these values only.
_DECISIVE = {
    "embed": ("models.retrieval", "models.precision"),
    "references": (
        *_DENSE,
        "references.exemplars",
        "references.image_size",
        "references.pairing",
        "references.prototypes",
        "references.language_attention",
        "references.context_elimination",
    ),
    "segment": (*_DENSE, *_SCORED, "segment.overlays"),
    "segment-trained": (
        "models.precision",
        "train.segmenter",
        "train.image_size",
        "segment.refine",
        "segment.overlays",
    ),
    "label": (*_DENSE, *_SCORED, "train.image_size"),
    "train": (
        "models.precision",
        "train.segmenter",
        "segment.calibrate",  # soft labels are read and cropped, too
        "train.image_size",
        "train.batch_size",
        "train.accumulate",
        "train.crop",
        "train.encoder_learning_rate",
        "train.checkpoint_every",
        "train.workers",
    ),
}


def decisive_settings(stage: str, settings: Settings) -> dict[str, object]:
    """The settings that determine the time and bytes per item of a stage, by name."""
    found = {}
    for name in _DECISIVE[stage]:
        section, _, key = name.partition(".")
        found[name] = getattr(getattr(settings, section), key)
    return found


@dataclass
class Meter:
    """Sums up the durations of a run's parts, over all readers and workers.

    read_seconds, read_cpu_seconds: wall-clock and CPU time of reading and decoding.
    work_seconds: wall-clock time of the workers, without waiting.
    """

    parts: int = 0
    read_seconds: float = 0.0
    read_cpu_seconds: float = 0.0
    work_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, read: float, read_cpu: float, work: float) -> None:
        """Counts one part."""
        self.parts += 1
        self.read_seconds += read
        self.read_cpu_seconds += read_cpu
        self.work_seconds += work

    @property
    def seconds(self) -> float:
        """Wall-clock time since the start of the run."""
        return time.monotonic() - self.started

    def run(self, workers: Workers, readers: int) -> dict[str, float | str]:
        """Statistics of the run until now, for `summary.json`."""
        return {
            "seconds": round(self.seconds, 2),
            "parts": self.parts,
            "read_seconds": round(self.read_seconds, 3),
            "read_cpu_seconds": round(self.read_cpu_seconds, 3),
            "work_seconds": round(self.work_seconds, 3),
            "readers": readers,
            "workers": workers.count,
            "threads": workers.threads,
            "gpus_per_worker": workers.gpus,
            "device": workers.device,
        }


def write_summary(
    out: str,
    stage: str,
    counts: Mapping[str, int],
    run: Mapping[str, Any],
    settings: Settings | Mapping[str, Any],
    others: Mapping[str, Any] | None = None,
) -> None:
    """Writes the summary of an artifact, before it is committed.

    Args:
        out: URI of the artifact.
        stage: its name.
        counts: of the artifact.
        run: statistics of this run (`Meter.run`) and its number of items.
        settings: of the run; if a mapping, those that determine its speed.
        others: further entries.
    """
    summary = {
        "stage": stage,
        "counts": dict(counts),
        **(others or {}),
        "this_run": dict(run),
        "settings": decisive_settings(stage, settings) if isinstance(settings, Settings) else dict(settings),
    }
    if isinstance(settings, Settings):
        summary["preset"] = settings.preset
    storage.write_json(storage.join(out, SUMMARY), summary)
