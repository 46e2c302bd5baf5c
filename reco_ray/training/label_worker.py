"""The worker of the label stage."""

import io
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image

from reco_ray.config import Settings
from reco_ray.corpus.load import pixels_of
from reco_ray.corpus.stage import write_rejected
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.sample import open_sample
from reco_ray.distributed.parts import Report, Worker
from reco_ray.files import storage
from reco_ray.models.dense import CachedDenseModels, DenseModels
from reco_ray.segmentation.segment import (
    best_target,
    segment_features,
    target_logits,
    target_probabilities,
)
from reco_ray.segmentation.targets import targets_of
from reco_ray.training.pseudo_labels import FRAMES_SCHEMA, IGNORE, LABELS_SCHEMA, SOFT_STRIDE, encode


@dataclass(frozen=True)
class LabelSet:
    """The pseudo-labels of one vocabulary.

    Attributes:
        bank: URI of the references.
        out: URI of the pseudo-labels artifact.
    """

    bank: str
    out: str


class LabelWorker(Worker[Report]):
    """Labels the images of a shard for every vocabulary, and commits frames and labels."""

    report = Report

    def __init__(
        self,
        settings: Settings,
        sets: dict[str, LabelSet],
        sample: str | None,
        frames: str,
    ) -> None:
        self._settings, self._sets, self._sample, self._frames = settings, sets, sample, frames

    def set_up(self, device: str) -> None:
        """Loads the dense models and the references of every vocabulary."""
        self._models = DenseModels.load(self._settings.models, device=device, seed=self._settings.seed)
        self._device = device
        banks = {
            name: ReferenceBank.open(one.bank, self._models.fingerprint) for name, one in self._sets.items()
        }
        sample = None if self._sample is None else open_sample(self._sample)
        options = self._settings.segment
        self._targets = {name: targets_of(bank, options, sample).to(device) for name, bank in banks.items()}

    def work(self, name: str, rows: pa.Table) -> Report:
        """Writes labels and rejected rows, and finally the frames."""
        usable = rows.filter(rows["pixels"].is_valid())
        frames: list[dict[str, object]] = []
        labels: dict[str, list[dict[str, object]]] = {key: [] for key in self._sets}
        counts = {key: np.zeros(256, np.int64) for key in self._sets}
        for row in range(usable.num_rows):
            entry = usable.slice(row, 1).select(["uri", "width", "height"]).to_pylist()[0]
            pixels = pixels_of(usable, row)
            picture = _shrunk(pixels, self._settings.train.image_size)
            frames.append({**entry, "frame": _jpeg(picture)})
            models, batch = (
                CachedDenseModels(self._models),
                torch.from_numpy(pixels.copy())[None].to(self._device),
            )
            for key, found in labels.items():
                ids, maps = self._label(models, key, batch, (picture.height, picture.width))
                counts[key] += np.bincount(ids.reshape(-1), minlength=256)
                found.append({"uri": entry["uri"], "label": encode(ids), **maps})
        for key, found in labels.items():
            schema = LABELS_SCHEMA.with_metadata({"pixels": json.dumps(counts[key].tolist())})
            table = pa.Table.from_pylist(found, schema=schema)
            storage.write_table(storage.join(self._sets[key].out, "labels", f"{name}.parquet"), table)
        write_rejected(self._frames, name, rows)
        table = pa.Table.from_pylist(frames, schema=FRAMES_SCHEMA)
        storage.write_table(storage.join(self._frames, "frames", f"{name}.parquet"), table)
        return Report(rows.num_rows)

    def _label(
        self, models: CachedDenseModels, key: str, batch: torch.Tensor, size: tuple[int, int]
    ) -> tuple[np.ndarray, dict[str, bytes | None]]:
        """Returns label ids or IGNORE, uint8 (H, W), and the other columns of LABELS_SCHEMA."""
        targets, options = self._targets[key], self._settings.segment
        encoded, soft = models.encode(batch), None
        if targets.calibration is None:
            result = segment_features(encoded, targets, batch[0], size, options)
        else:
            logits = target_logits(encoded, targets, options)
            maps, ids = target_probabilities(logits, targets, encoded.visual[0], batch[0], options)
            result = best_target(maps, ids, targets, size, options)
            count = int(targets.labels.max()) + 1
            likely = soft_labels(maps, ids, count)
            soft = encode(_bytes(likely).reshape(-1, likely.shape[2]))
        unsure = result.scores < self._settings.train.min_score
        labels = result.labels.masked_fill(unsure, IGNORE).to(torch.uint8).cpu().numpy()
        return labels, {"score": encode(_bytes(result.scores)), "soft": soft}


def soft_labels(maps: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Probabilities of every label at a lower resolution.

    Args:
        maps: probabilities of k targets, (k, H, W).
        labels: label ids of the targets, int64 (k,); the probabilities of those with the same label are added up.
        count: number of labels.

    Returns:
        (count, h, w), with cells of about SOFT_STRIDE pixels; labels that are not in `labels` are 0.
    """
    height, width = (max(1, round(side / SOFT_STRIDE)) for side in maps.shape[1:])
    small = F.adaptive_avg_pool2d(maps, (height, width))
    return small.new_zeros(count, height, width).index_add_(0, labels, small)


def _bytes(shares: torch.Tensor) -> np.ndarray:
    return (shares.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _shrunk(pixels: np.ndarray, short_side: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
