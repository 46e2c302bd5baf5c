"""Images encoded for a sweep.

Encoding is the expensive step, and depends on few settings: the dense models, the image size and the crop. Its results
are therefore shared by all trials that agree in these.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from reco_ray.config import ModelSettings, Settings
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.models.dense import DenseFeatures, DenseModels

AUGMENTED_SCALE = 0.75  # relative to segment.image_size


class View(NamedTuple):
    """Everything that determines the features of an image.

    Attributes:
        models: The dense models.
        seed: Seed of randomly initialised models.
        shape: "whole" or "crop" for exemplars, as in `references.geometry`; "fit" for images to segment.
        size: Side length in pixels.
        max_pixels: Larger images are refused.
        mirrored: Whether the image is flipped horizontally.
    """

    models: ModelSettings
    seed: int
    shape: Literal["whole", "crop", "fit"]
    size: int
    max_pixels: int
    mirrored: bool = False


def exemplar_view(settings: Settings) -> View:
    """The view of exemplars."""
    options = settings.references
    return View(
        _dense_settings(settings),
        settings.seed,
        options.geometry,
        options.image_size,
        settings.embed.max_pixels,
    )


def image_view(settings: Settings) -> View:
    """The view of images to segment."""
    options = settings.segment
    return View(_dense_settings(settings), settings.seed, "fit", options.image_size, options.max_pixels)


def augmented_view(settings: Settings) -> View:
    """The view of images to segment, mirrored and at three quarters of the size."""
    view = image_view(settings)
    return view._replace(size=max(32, round(view.size * AUGMENTED_SCALE)), mirrored=True)


def _dense_settings(settings: Settings) -> ModelSettings:
    """The model settings with constants in place of those that dense features do not depend on."""
    language = settings.models.language or settings.models.retrieval
    return settings.models.model_copy(
        update={"retrieval": language, "language": language, "templates": "plain"}
    )


@dataclass(frozen=True)
class Encoded:
    """One encoded image.

    Attributes:
        uri: URI of the image.
        size: (height, width) of the original image in pixels.
        visual: float16 (c, h, w); float32 would need twice the memory.
        language: float16 (d, h, w).
        logits: float16 (k, h, w), of a language model that is a classifier; None for exemplars.
        pixels: uint8 (H, W, 3), the input of the models; None for exemplars.
        reason: Why the image cannot be used, in which case all other fields are empty; else None.
    """

    uri: str
    size: tuple[int, int] = (0, 0)
    visual: np.ndarray | None = None
    language: np.ndarray | None = None
    logits: np.ndarray | None = None
    pixels: np.ndarray | None = None
    reason: str | None = None


def encode(view: View, uris: list[str], device: str) -> list[Encoded]:
    """Reads and encodes images. An image that cannot be used gets a `reason` in place of features.

    Raises:
        RecoError: If the models cannot be loaded.
    """
    models = cached_models(view.models, view.seed, device)
    transform, stride = models.encoder.transform, models.encoder.stride

    def to_pixels(image: Image.Image) -> np.ndarray:
        image = ImageOps.mirror(image) if view.mirrored else image
        if view.shape == "fit":
            return transform.fit(image, view.size, stride)
        return (transform.stretch if view.shape == "whole" else transform.crop)(image, view.size)

    rows = load_images(uris, to_pixels, max_pixels=view.max_pixels, short_side=view.size)
    found = [Encoded(uri, reason=why) for uri, why in zip(uris, rows["reason"].to_pylist(), strict=True)]
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in (row for row, image in enumerate(found) if image.reason is None):
        alike[pixels_of(rows, row).shape].append(row)
    for numbers in alike.values():
        pixels = [pixels_of(rows, row).copy() for row in numbers]
        features = models.encode(torch.from_numpy(np.stack(pixels)).to(device))
        visual, language = (maps.half().cpu().numpy() for maps in (features.visual, features.language))
        segmented = view.shape == "fit"
        logits = features.logits.half().cpu().numpy() if segmented and features.logits is not None else None
        for place, row in enumerate(numbers):
            found[row] = Encoded(
                uris[row],
                (rows["height"][row].as_py(), rows["width"][row].as_py()),
                visual[place].copy(),
                language[place].copy(),
                None if logits is None else logits[place].copy(),
                pixels[place] if segmented else None,
            )
    return found


@lru_cache(maxsize=1)
def cached_models(models: ModelSettings, seed: int, device: str) -> DenseModels:
    """The dense models; a worker process keeps those it loaded last."""
    return DenseModels.load(models, device=device, seed=seed)


def features_of(images: list[Encoded], device: str, classes: torch.Tensor | None = None) -> DenseFeatures:
    """The features of usable images of one shape as a batch, float32.

    Args:
        images: The images.
        device: Torch device.
        classes: Of the model that encoded them, as `DenseModels.classes`.
    """

    def batch(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(image, name) for image in images])).to(device).float()

    logits = None if images[0].logits is None else batch("logits")
    return DenseFeatures(
        batch("visual"), batch("language"), logits, None if classes is None else classes.to(device)
    )
