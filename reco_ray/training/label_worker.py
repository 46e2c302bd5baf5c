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
from reco_ray.distributed.parts import Report, Worker
from reco_ray.files import storage
from reco_ray.models.dense import CachedDenseModels, DenseModels
from reco_ray.segmentation.calibration import Calibration, probabilities
from reco_ray.segmentation.score import score_maps
from reco_ray.segmentation.segment import label_scores, score_factors, segment
from reco_ray.segmentation.target_set import Targets
from reco_ray.segmentation.targets import targets_of
from reco_ray.training.pseudo_labels import FRAMES_SCHEMA, IGNORE, LABELS_SCHEMA, encode


@dataclass(frozen=True)
class LabelSet:
    """The pseudo-labels of one vocabulary.

    Attributes:
        bank: URI of the references.
        out: URI of the pseudo-labels artifact.
    """

    bank: str
    out: str


def open_targets(
    sets: dict[str, LabelSet], models: DenseModels, settings: Settings, device: str
) -> dict[str, Targets]:
    """Opens the references of every set.

    Raises:
        OtherModelError: a bank was made with other models.
    """
    banks = {name: ReferenceBank.open(one.bank, models.fingerprint) for name, one in sets.items()}
    return {name: targets_of(bank, settings.segment).to(device) for name, bank in banks.items()}


class LabelWorker(Worker[Report]):
    """Labels the images of a shard for every vocabulary, and commits frames and labels."""

    report = Report

    def __init__(
        self,
        settings: Settings,
        sets: dict[str, LabelSet],
        calibrations: dict[str, Calibration],
        frames: str,
    ) -> None:
        self._settings, self._sets, self._calibrations, self._frames = settings, sets, calibrations, frames

    def set_up(self, device: str) -> None:
        """Loads the dense models and the references of every vocabulary."""
        self._models = DenseModels.load(self._settings.models, device=device, seed=self._settings.seed)
        self._device = device
        self._calibrations = {name: one.to(device) for name, one in self._calibrations.items()}
        self._targets = open_targets(self._sets, self._models, self._settings, device)

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
        soft = None
        if (calibrated := self._calibrations.get(key)) is None:
            result = segment(models, targets, batch, [size], options)[0]
        else:
            factors = score_factors(models.encode(batch), targets, options)
            likely = probabilities(score_maps(**factors), calibrated)
            full = F.interpolate(likely, tuple(batch.shape[1:3]), mode="bilinear", align_corners=False)[0]
            result = label_scores(full, targets, batch[0], size, options)
            soft = encode(_bytes(likely[0]).reshape(-1, likely.shape[3]))
        unsure = result.scores < self._settings.train.min_score
        labels = result.labels.masked_fill(unsure, IGNORE).to(torch.uint8).cpu().numpy()
        return labels, {"score": encode(_bytes(result.scores)), "soft": soft}


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
