"""Measures, over the images to be labelled, how the scores of every vocabulary's concepts lie; on Ray."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reco_ray import storage
from reco_ray.cluster import plan_workers
from reco_ray.config import Settings
from reco_ray.console import progress
from reco_ray.corpus.load import pixels_of
from reco_ray.errors import RecoError
from reco_ray.models.dense import DenseModels, EncodedOnce
from reco_ray.segmentation.calibration import Calibration, calibration, moments
from reco_ray.segmentation.score import score_maps
from reco_ray.segmentation.segment import score_factors
from reco_ray.shards import cut, run_shards
from reco_ray.training.label_worker import LabelSet, LoadFrames, open_targets

FILE = "calibration.json"  # means and deviations, (f, m) each; written before the first label
_SHARD = 16


def calibrate(
    sets: dict[str, LabelSet], listing: pa.Table, load: LoadFrames, settings: Settings
) -> dict[str, Calibration]:
    """Calibrations by name, of `train.calibrate` images spread evenly over the listing; those on record are kept.

    Raises:
        RecoError: none of these images can be used.
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
    sets: dict[str, LabelSet], listing: pa.Table, load: LoadFrames, settings: Settings
) -> dict[str, np.ndarray]:
    count = min(settings.train.calibrate, listing.num_rows)
    sample = listing.take(np.linspace(0, listing.num_rows - 1, count).round().astype(np.int64))
    shards = cut(sample, _SHARD)
    workers = plan_workers(settings.models.device, len(shards), settings.placement.label)
    results = {}
    with progress("calibrate", count, 0) as advance:
        for shard in run_shards(shards, load, MeasureWorker, {"settings": settings, "sets": sets}, workers):
            advance(shard["images"])
            results[shard["name"]] = shard
    if not any(shard["usable"] for shard in results.values()):
        raise RecoError(f"none of {count} images can be used (the first: {results[min(results)]['reason']})")
    # In the order of the shards, whatever order they came in: sums of the same numbers are then the same.
    measured = [results[name]["moments"] for name in sorted(results) if results[name]["usable"]]
    return {name: np.sum([each[name] for each in measured], axis=0) for name in sets}


class MeasureWorker:
    """Sums up the moments of every vocabulary's scores over the loaded rows of a shard."""

    def __init__(self, *, threads: int, device: str, settings: Settings, sets: dict[str, LabelSet]) -> None:
        torch.set_num_threads(threads)
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        self._options, self._device = settings.segment, device
        self._targets = open_targets(sets, self._models, settings, device)

    def __call__(self, name: str, rows: pa.Table) -> dict[str, Any]:
        usable = rows.filter(rows["pixels"].is_valid())
        totals: dict[str, Any] = dict.fromkeys(self._targets, 0)
        for row in range(usable.num_rows):
            batch = torch.from_numpy(pixels_of(usable, row).copy())[None].to(self._device)
            models = EncodedOnce(self._models)
            for key, targets in self._targets.items():
                factors = score_factors(models.encode(batch), targets, self._options)
                totals[key] = totals[key] + moments([each.logit() for each in score_maps(**factors)])
        reasons = [reason for reason in rows["reason"].to_pylist() if reason]
        return {
            "name": name,
            "images": rows.num_rows,
            "usable": usable.num_rows,
            "reason": reasons[0] if reasons else None,
            "moments": {key: total.tolist() for key, total in totals.items()} if usable.num_rows else {},
        }
