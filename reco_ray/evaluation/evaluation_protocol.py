"""Evaluation protocols by name: image size, crop and windows, comparable with publications (docs/evaluation.md)."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from reco_ray.config import SegmentSettings
from reco_ray.errors import SettingError


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Attributes:
        name: Name of the protocol.
        short_side: Short side of the models' input in pixels.
        crop: Whether only the central square of image and label is used, at that size; otherwise the whole image is
            used and scored at the size of its label.
        window: Side of sliding windows whose scores are averaged, in pixels; None for no windows.
        step: Step between windows in pixels; None for no windows.
    """

    name: str
    short_side: int
    crop: bool = False
    window: int | None = None
    step: int | None = None

    def cut_image(self, image: Image.Image) -> Image.Image:
        """Crops an image, before it is resized to a multiple of the models' stride."""
        return _centre(image, self.short_side) if self.crop else image

    def cut_truth(self, truth: np.ndarray) -> np.ndarray:
        """Crops a label map: integer (H, W) -> (h, w)."""
        return np.asarray(_centre(Image.fromarray(truth), self.short_side)) if self.crop else truth


PROTOCOL_NAMES = ("whole", "reco", "mmseg")


def choose_protocol(name: str, short_side: int | None, settings: SegmentSettings) -> Protocol:
    """The protocol with a name.

    Args:
        name: One of PROTOCOL_NAMES.
        short_side: Short side in pixels; None for the protocol's own, or else `segment.image_size`.
        settings: Settings of segmentation.

    Raises:
        SettingError: If there is no such protocol or `short_side` is below 32.
    """
    if short_side is not None and short_side < 32:
        raise SettingError(f"short side {short_side}: at least 32 pixels are needed")
    if name == "whole":
        return Protocol(name, short_side or settings.image_size)
    if name == "reco":
        return Protocol(name, short_side or 320, crop=True)
    if name == "mmseg":
        return Protocol(name, short_side or 448, window=224, step=112)
    raise SettingError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOL_NAMES)}")


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Resizes the short side to `side` and crops the central square; nearest neighbour for all images, as in ReCo."""
    width, height = (max(side, int(side * edge / min(image.size))) for edge in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.NEAREST)
    return resized.crop((left, top, left + side, top + side))
