"""The Segmenter: a trained network and its vocabulary, opened by URI.

Files of the artifact: `weights.safetensors`; `curve.parquet` (step, loss, agreement); `examples/step-<n>.jpg`, held-out
frames with pseudo-labels and predictions; `tensorboard/`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load as load_tensors

from reco_ray.config import SegmentSettings
from reco_ray.contents import SegmenterContent
from reco_ray.corpus.arrays import picture_of
from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.corpus.read import read_image_bytes
from reco_ray.errors import UnreadableError, file_error, reason
from reco_ray.files import artifacts, storage
from reco_ray.models.runtime import Runtime, resolve_runtime
from reco_ray.segmentation.palette import palette
from reco_ray.segmentation.segment import SegmentedImage, label_scores
from reco_ray.segmentation.target_set import BACKGROUND, Targets
from reco_ray.training.network import Network, build_network
from reco_ray.vocabulary import Vocabulary

MAX_PIXELS = 178_956_970  # of an image; Pillow refuses larger ones


@dataclass(frozen=True)
class Segmenter:
    """An opened segmenter.

    Attributes:
        uri: of the artifact.
        vocabulary: the concepts.
        labels: names of the label ids, "background" first if there is one.
        background: whether label 0 is the background.
        image_size: short side to which images are resized, in pixels.
        bytes: size of the weights.
        network: the trained network.
        runtime: device and precision.
    """

    uri: str
    vocabulary: Vocabulary
    labels: list[str]
    background: bool
    image_size: int
    bytes: int
    network: Network
    runtime: Runtime

    @classmethod
    def from_artifact(cls, uri: str, *, device: str = "cpu", precision: str = "auto") -> "Segmenter":
        """Opens a segmenter for inference.

        Raises:
            RecoError: the artifact is missing, unfinished or damaged, or its weights have another architecture.
        """
        content = artifacts.read_manifest(uri, SegmenterContent).content
        network = build_network(content.architecture, len(content.labels), initial="random")
        try:
            data = storage.read_bytes(storage.join(uri, "weights.safetensors"))
            network.module.load_state_dict(load_tensors(data))
        except Exception as error:  # safetensors has no common base for its errors
            raise UnreadableError(
                f"{uri}: its weights are not those of a {content.architecture}: {reason(error)}"
            ) from error
        runtime = resolve_runtime(device, precision)
        runtime.prepare(network.module)
        return cls(
            storage.absolute(uri),
            content.vocabulary,
            content.labels,
            content.background,
            content.image_size,
            len(data),
            network,
            runtime,
        )

    @property
    def palette(self) -> np.ndarray:
        """Colours of the labels, uint8 (m, 3)."""
        return palette(len(self.labels), background=self.background)

    @property
    def to_pixels(self) -> Callable[[Image.Image], np.ndarray]:
        """Resizes an RGB image to the input of the network, uint8 (H, W, 3); can be pickled, without the network."""
        transform, stride = self.network.transform, self.network.stride
        return partial(transform.fit, short_side=self.image_size, multiple=stride)

    def label_names(self, background: bool | None = None) -> list[str]:
        """Names of the label ids of `label`, in order; `background` as there."""
        concepts = self.labels[1:] if self.background else self.labels
        wanted = self.background if background is None else background
        return ["background", *concepts] if wanted else list(concepts)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Computes logits: uint8 (b, H, W, 3), sides multiples of `network.stride` -> float32 (b, m, H, W)."""
        images = self.network.transform.normalize(pixels.to(self.runtime.device))
        with self.runtime.inference():
            return self.network.module(images).float()

    def label(
        self,
        logits: torch.Tensor,
        pixels: torch.Tensor,
        size: tuple[int, int],
        settings: SegmentSettings,
        background: bool | None = None,
    ) -> SegmentedImage:
        """Labels one image, as `label_trained` does.

        Args:
            logits: of the image, (m, h, w), as `logits` computes them.
            pixels: uint8 (H, W, 3).
            size: (height, width) of the result.
            settings: refinement and background threshold.
            background: whether label 0 of the result is the background; None = as the network was trained.
        """
        return label_trained(logits, pixels, size, settings, background=self.background, wanted=background)

    def segment(self, pixels: torch.Tensor, sizes: list[tuple[int, int]]) -> list[SegmentedImage]:
        """Segments images uint8 (b, H, W, 3), as for `logits`.

        Returns:
            Labels and their probabilities, in the given sizes (height, width).
        """
        return [best_label(one, size) for one, size in zip(self.logits(pixels), sizes, strict=True)]

    def predict(self, image: Any) -> tuple[np.ndarray, np.ndarray]:
        """Segments one image.

        Args:
            image: a PIL image, an array or a tensor as for `picture_of`; or the path, URI, bytes or open file of an
                encoded image, which is rotated as its EXIF orientation says.

        Returns:
            Label ids, int64 (H, W), and their probabilities, float32 (H, W), at the size of the image.

        Raises:
            RecoError: the image cannot be read, or the array has the wrong shape, dtype or range.
        """
        picture = _picture(image)
        pixels = self.to_pixels(picture)
        result = self.segment(torch.from_numpy(pixels.copy())[None], [(picture.height, picture.width)])[0]
        return result.labels.cpu().numpy(), result.scores.cpu().numpy()


def _picture(image: Any) -> Image.Image:
    name = "image"
    try:
        if isinstance(image, str | PathLike):
            name = str(image)
            data = read_image_bytes(name)
        elif isinstance(image, bytes | bytearray | memoryview):
            data = bytes(image)
        elif hasattr(image, "read"):
            data = image.read()
        else:
            return picture_of(image)
        return decode_image(data, max_pixels=MAX_PIXELS)[0]
    except OSError as error:
        raise file_error(f"{name}: the image cannot be read: {reason(error)}", error) from error
    except DecodeError as error:
        raise UnreadableError(f"{name}: {error}") from error


def best_label(logits: torch.Tensor, size: tuple[int, int]) -> SegmentedImage:
    """Resizes logits (m, h, w) to `size` and returns the most probable labels and their probabilities.

    Labels are resized one at a time, to save memory with hundreds of labels.
    """

    def resized(label: int) -> torch.Tensor:
        return F.interpolate(logits[None, label, None], size, mode="bilinear", align_corners=False)[0, 0]

    best = resized(0)
    labels = torch.zeros(size, dtype=torch.long, device=logits.device)
    for label in range(1, len(logits)):
        one = resized(label)
        labels.masked_fill_(one > best, label)
        best = torch.maximum(best, one)
    total = torch.zeros_like(best)
    for label in range(len(logits)):
        total += (resized(label) - best).exp()
    return SegmentedImage(labels, total.reciprocal())


@torch.inference_mode()
def label_trained(
    logits: torch.Tensor,
    pixels: torch.Tensor,
    size: tuple[int, int],
    settings: SegmentSettings,
    *,
    background: bool,
    wanted: bool | None = None,
) -> SegmentedImage:
    """Labels one image from a segmenter's logits, with the refinement and background threshold of the settings.

    Args:
        logits: float (m, h, w).
        pixels: uint8 (H, W, 3).
        size: (height, width) of the result.
        settings: of the run or request.
        background: whether label 0 of the logits is the background.
        wanted: whether label 0 of the result is; None = as `background`. A background that is not wanted never wins;
            one that the network does not know is where it is less sure than the threshold.
    """
    wanted = background if wanted is None else wanted
    if background and not wanted:
        logits = logits[1:]
    found = (
        best_label(logits, size) if settings.refine == "none" else _refined(logits, pixels, size, settings)
    )
    labels = found.labels + 1 if wanted and not background else found.labels
    if wanted:
        labels = labels.masked_fill(found.scores < settings.background_threshold, BACKGROUND)
    return SegmentedImage(labels, found.scores)


def _refined(
    logits: torch.Tensor, pixels: torch.Tensor, size: tuple[int, int], settings: SegmentSettings
) -> SegmentedImage:
    """Refines the probabilities at the size of `pixels`, and only those of labels that win somewhere, to save time."""
    maps = F.interpolate(logits[None], pixels.shape[:2], mode="bilinear", align_corners=False)[0].softmax(0)
    present = maps.argmax(0).unique()
    targets = Targets(maps.new_empty(0), maps.new_empty(0), present, background=False)
    return label_scores(maps[present], targets, pixels.to(logits.device), size, settings)
