"""Segments the images of a benchmark with every variant of the method."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from reco_ray.config import SegmentSettings, Settings
from reco_ray.corpus.load import ImageLoader, pixels_of
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.errors import UnreadableError
from reco_ray.evaluation.dataset import Dataset
from reco_ray.evaluation.evaluation_protocol import Protocol
from reco_ray.models.dense import CachedDenseModels, DenseModels
from reco_ray.models.image import ImageTransform
from reco_ray.segmentation.segment import PixelEncoder, segment
from reco_ray.segmentation.targets import targets_of
from reco_ray.segmentation.windows import segment_windows
from reco_ray.training import Segmenter


@dataclass(frozen=True)
class Variant:
    """A variant of segmenting with references.

    Attributes:
        references: URI of the references.
        settings: Settings of segmentation.
    """

    references: str
    settings: SegmentSettings


@dataclass(frozen=True)
class Trained:
    """A trained segmenter to evaluate.

    Attributes:
        segmenter: URI of the segmenter.
    """

    segmenter: str


def sample_loader(transform: ImageTransform, stride: int, protocol: Protocol, max_pixels: int) -> ImageLoader:
    """Loads samples (`number`, `uri`), resized and cropped as the protocol prescribes."""
    to_pixels = partial(_fit_protocol, transform, stride, protocol)
    return ImageLoader(to_pixels, short_side=protocol.short_side, max_pixels=max_pixels)


def _fit_protocol(
    transform: ImageTransform, stride: int, protocol: Protocol, image: Image.Image
) -> np.ndarray:
    return transform.fit(protocol.cut_image(image), protocol.short_side, stride)


@dataclass(frozen=True)
class Compared:
    """The truth and the predictions of one sample.

    Attributes:
        number: Number of the sample.
        pixels: uint8 (h, w, 3), the input of the models.
        truth: uint8 (H, W), classes, IGNORE where nothing is counted.
        predicted: Variant -> integer (H, W), classes.
    """

    number: int
    pixels: np.ndarray
    truth: np.ndarray
    predicted: dict[str, np.ndarray]


class Comparer:
    """Segments loaded samples with every variant."""

    def __init__(
        self,
        dataset: Dataset,
        variants: Mapping[str, Variant | Trained],
        protocol: Protocol,
        settings: Settings,
        device: str,
    ) -> None:
        self.models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        self._dataset, self._variants, self._protocol, self._device = dataset, variants, protocol, device
        self._targets = {
            name: targets_of(ReferenceBank.open(v.references, self.models.fingerprint), v.settings).to(device)
            for name, v in variants.items()
            if isinstance(v, Variant)
        }
        self._segmenters = {
            name: Segmenter.from_artifact(v.segmenter, device=device, precision=settings.models.precision)
            for name, v in variants.items()
            if isinstance(v, Trained)
        }
        self._class_of = np.array(dataset.class_of)

    def __call__(self, rows: pa.Table) -> Iterator[Compared]:
        """Segments rows of `sample_loader`, one at a time.

        Raises:
            RecoError: If an image cannot be used or a label file does not match it.
        """
        for row in range(rows.num_rows):
            entry = rows.slice(row, 1).drop_columns(["pixels"]).to_pylist()[0]
            truth = self._protocol.cut_truth(self._truth(entry))
            pixels = pixels_of(rows, row)
            batch = torch.from_numpy(pixels.copy())[None].to(self._device)
            models = CachedDenseModels(self.models)
            predicted = {
                name: self._class_of[
                    self._trained_labels(self._segmenters[name], pixels, truth.shape)
                    if isinstance(variant, Trained)
                    else self._labels(models, name, variant.settings, batch, truth.shape)
                ]
                for name, variant in self._variants.items()
            }
            yield Compared(entry["number"], pixels, truth, predicted)

    def _truth(self, entry: dict[str, Any]) -> np.ndarray:
        if entry["reason"] is not None:
            raise UnreadableError(f"{entry['uri']}: {entry['reason']}: every image of a benchmark is needed")
        size = (entry["height"], entry["width"])
        return self._dataset.truth(self._dataset.samples[entry["number"]], size)

    def _labels(
        self,
        models: PixelEncoder,
        name: str,
        settings: SegmentSettings,
        batch: torch.Tensor,
        size: tuple[int, int],
    ) -> np.ndarray:
        targets = self._targets[name]
        if self._protocol.window and self._protocol.step:
            options = {"window": self._protocol.window, "step": self._protocol.step}
            return segment_windows(models, targets, batch, size, settings, **options).labels.cpu().numpy()
        return segment(models, targets, batch, [size], settings)[0].labels.cpu().numpy()

    def _trained_labels(self, segmenter: Segmenter, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Segments the whole image at the size the segmenter was trained at, without the protocol's windows."""
        transform, stride = segmenter.network.transform, segmenter.network.stride
        fitted = transform.fit(Image.fromarray(pixels), segmenter.image_size, stride)
        return segmenter.segment(torch.from_numpy(fitted.copy())[None], [size])[0].labels.cpu().numpy()
