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
from reco_ray.evaluation.confusion import IGNORE
from reco_ray.evaluation.dataset import Dataset
from reco_ray.evaluation.evaluation_protocol import Protocol
from reco_ray.models.dense import CachedDenseModels, DenseFeatures, DenseModels
from reco_ray.models.image import ImageTransform
from reco_ray.segmentation.segment import PixelEncoder, segment
from reco_ray.segmentation.targets import targets_of
from reco_ray.segmentation.windows import segment_windows
from reco_ray.training.segmenter import Segmenter


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
        with_background: For binary masks, the same with the background as a class that also competes; else None.
    """

    number: int
    pixels: np.ndarray
    truth: np.ndarray
    predicted: dict[str, np.ndarray]
    with_background: "WithBackground | None" = None


@dataclass(frozen=True)
class WithBackground:
    """Truth and predictions of one sample, in numbers of `Dataset.classes_with_background`.

    Attributes:
        truth: int64 (H, W).
        predicted: Variant -> int64 (H, W).
    """

    truth: np.ndarray
    predicted: dict[str, np.ndarray]


class Comparer:
    """Segments loaded samples with every variant.

    There is a background if the benchmark has one, whatever the settings say and also for a single class. A data set of
    binary masks has none, but is segmented a second time with one; its images are encoded once.
    """

    def __init__(
        self,
        dataset: Dataset,
        variants: Mapping[str, Variant | Trained],
        protocol: Protocol,
        settings: Settings,
        device: str,
        sample: DenseFeatures | None = None,
    ) -> None:
        self.models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        self._dataset, self._protocol, self._device = dataset, protocol, device
        self._own = dataset.vocabulary.background
        self._also = dataset.binary and not self._own
        backgrounds = [self._own, True] if self._also else [self._own]
        self._ways: dict[str, _Zeroshot | _Trained] = {
            name: _Trained(
                Segmenter.from_artifact(v.segmenter, device=device, precision=settings.models.precision)
            )
            if isinstance(v, Trained)
            else _Zeroshot(
                ReferenceBank.open(v.references, self.models.fingerprint),
                v.settings,
                protocol,
                backgrounds,
                device,
                sample,
            )
            for name, v in variants.items()
        }
        self._class_of = np.array(dataset.class_of)
        self._class_with_background = dataset.add_background(np.array([IGNORE, *dataset.class_of]))

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
            image = _Image(pixels, batch, CachedDenseModels(self.models), truth.shape)
            predicted = {
                name: self._class_of[way.labels(image, self._own)] for name, way in self._ways.items()
            }
            with_background = None
            if self._also:
                with_background = WithBackground(
                    self._dataset.add_background(truth),
                    {
                        n: self._class_with_background[way.labels(image, True)]
                        for n, way in self._ways.items()
                    },
                )
            yield Compared(entry["number"], pixels, truth, predicted, with_background)

    def _truth(self, entry: dict[str, Any]) -> np.ndarray:
        if entry["reason"] is not None:
            raise UnreadableError(f"{entry['uri']}: {entry['reason']}: every image of a benchmark is needed")
        size = (entry["height"], entry["width"])
        return self._dataset.truth(self._dataset.samples[entry["number"]], size)


@dataclass(frozen=True)
class _Image:
    """An image to segment with every variant.

    Attributes:
        pixels: uint8 (h, w, 3).
        batch: The same on the models' device, uint8 (1, h, w, 3).
        models: The dense models, which encode it once.
        size: (height, width) of its labels.
    """

    pixels: np.ndarray
    batch: torch.Tensor
    models: PixelEncoder
    size: tuple[int, int]


class _Zeroshot:
    """Segments with references, as the segment stage does."""

    def __init__(
        self,
        bank: ReferenceBank,
        settings: SegmentSettings,
        protocol: Protocol,
        backgrounds: list[bool],
        device: str,
        sample: DenseFeatures | None,
    ) -> None:
        self._protocol = protocol
        self._settings = {on: settings.model_copy(update={"background": on}) for on in backgrounds}
        self._targets = {
            on: targets_of(bank, options, sample).to(device) for on, options in self._settings.items()
        }

    def labels(self, image: _Image, background: bool) -> np.ndarray:
        """Label ids, int64 (H, W); label 0 is the background, if there is one."""
        targets, settings = self._targets[background], self._settings[background]
        if self._protocol.window and self._protocol.step:
            options = {"window": self._protocol.window, "step": self._protocol.step}
            found = segment_windows(image.models, targets, image.batch, image.size, settings, **options)
        else:
            found = segment(image.models, targets, image.batch, [image.size], settings)[0]
        return found.labels.cpu().numpy()


class _Trained:
    """Segments with a trained segmenter: the whole image at the size it was trained at, without windows."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    def labels(self, image: _Image, background: bool) -> np.ndarray:
        """As for `_Zeroshot`. A segmenter that was trained without a background never predicts it."""
        fitted = torch.from_numpy(self._segmenter.to_pixels(Image.fromarray(image.pixels)).copy())
        logits = self._segmenter.logits(fitted[None])[0]
        found = self._segmenter.label(logits, fitted, image.size, _UNREFINED, background)
        return found.labels.cpu().numpy()


_UNREFINED = SegmentSettings(refine="none")
