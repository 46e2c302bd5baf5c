"""Calibrates the scores of every vocabulary's concepts over the images to be labelled, on Ray."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reco_ray.config import Settings
from reco_ray.corpus.load import ImageLoader, pixels_of
from reco_ray.distributed.parts import Report, Worker, cut
from reco_ray.distributed.pool import stage_pool
from reco_ray.errors import UnreadableError
from reco_ray.files import storage
from reco_ray.models.dense import CachedDenseModels, DenseModels
from reco_ray.segmentation.calibration import Calibration, calibration, moments
from reco_ray.segmentation.score import score_maps
from reco_ray.segmentation.segment import score_factors
from reco_ray.training.label_worker import LabelSet, open_targets

FILE = "calibration.json"  # means and deviations, (f, m) each; written before labelling starts
_SHARD = 16


def calibrate(
    sets: dict[str, LabelSet], listing: pa.Table, load: ImageLoader, settings: Settings
) -> dict[str, Calibration]:
    """Returns calibrations by name, measured on `train.calibrate` evenly spaced images; existing ones are read.

    Raises:
        UnreadableError: none of these images is usable.
    """
    files = {name: storage.join(one.out, FILE) for name, one in sets.items()}
    missing = {name: one for name, one in sets.items() if not storage.exists(files[name])}
    if missing:
        for name, total in _measure(missing, listing, load, settings).items():
            found = calibration(torch.tensor(total, dtype=torch.float64))
            storage.write_bytes(files[name], json.dumps(found.to_lists()).encode())
    return {
        name: Calibration.from_lists(json.loads(storage.read_bytes(file))) for name, file in files.items()
    }


def _measure(
    sets: dict[str, LabelSet], listing: pa.Table, load: ImageLoader, settings: Settings
) -> dict[str, np.ndarray]:
    count = min(settings.train.calibrate, listing.num_rows)
    sample = listing.take(np.linspace(0, listing.num_rows - 1, count).round().astype(np.int64))
    shards = cut(sample, _SHARD)
    with stage_pool("calibrate", settings.models.device, settings.placement.label, count) as pool:
        reports = {report.name: report for report in pool.shards(shards, load, MeasureWorker(settings, sets))}
    # Summed in the order of the shards, so that results do not depend on the order of execution.
    ordered = [reports[name] for name in sorted(reports)]
    measured = [report.moments for report in ordered if report.usable]
    if not measured:
        raise UnreadableError(f"none of {count} images can be used (the first: {ordered[0].reason})")
    return {name: np.sum([np.array(each[name]) for each in measured], axis=0) for name in sets}


@dataclass(frozen=True)
class MeasureReport(Report):
    """Measurements of one shard.

    Attributes:
        name: of the shard.
        usable: number of readable images.
        reason: why the first unreadable image could not be read.
        moments: as of `segmentation.calibration.moments`, in nested lists, by vocabulary; empty if no image is usable.
    """

    name: str
    usable: int
    reason: str | None
    moments: dict[str, list[Any]]


class MeasureWorker(Worker[MeasureReport]):
    """Sums the moments of every vocabulary's scores over the images of a shard."""

    report = MeasureReport

    def __init__(self, settings: Settings, sets: dict[str, LabelSet]) -> None:
        self._settings, self._options, self._sets = settings, settings.segment, sets

    def set_up(self, device: str) -> None:
        """Loads the dense models and the references of every vocabulary."""
        settings = self._settings
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        self._device = device
        self._targets = open_targets(self._sets, self._models, settings, device)

    def work(self, name: str, rows: pa.Table) -> MeasureReport:
        """Measures one shard."""
        usable = rows.filter(rows["pixels"].is_valid())
        totals: dict[str, torch.Tensor] = {}
        for row in range(usable.num_rows):
            batch = torch.from_numpy(pixels_of(usable, row).copy())[None].to(self._device)
            models = CachedDenseModels(self._models)
            for key, targets in self._targets.items():
                factors = score_factors(models.encode(batch), targets, self._options)
                found = moments([each.logit() for each in score_maps(**factors)])
                totals[key] = totals[key] + found if key in totals else found
        reasons = [reason for reason in rows["reason"].to_pylist() if reason]
        return MeasureReport(
            rows.num_rows,
            name=name,
            usable=usable.num_rows,
            reason=reasons[0] if reasons else None,
            moments={key: total.tolist() for key, total in totals.items()},
        )
