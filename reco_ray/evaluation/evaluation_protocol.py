"""How images are sized, cut and scored, by name, so that figures compare with published ones (docs/evaluation.md)."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from reco_ray.config import SegmentSettings
from reco_ray.errors import RecoError


@dataclass(frozen=True)
class Protocol:
    """A way to measure.

    short_side: of the image that the models see, pixels. crop: only the central square of image and label is used, at
    that size; else the whole image, scored at the size of its label. window, step: of sliding windows whose scores are
    averaged, pixels; None for none.
    """

    name: str
    short_side: int
    crop: bool = False
    window: int | None = None
    step: int | None = None

    def cut_image(self, image: Image.Image) -> Image.Image:
        """What of an image the models see, before it is fitted to their stride."""
        return _centre(image, self.short_side) if self.crop else image

    def cut_truth(self, truth: np.ndarray) -> np.ndarray:
        """What of a truth is counted: int (H, W) -> (h, w)."""
        return np.asarray(_centre(Image.fromarray(truth), self.short_side)) if self.crop else truth


PROTOCOL_NAMES = ("whole", "reco", "mmseg")


def choose_protocol(name: str, short_side: int | None, settings: SegmentSettings) -> Protocol:
    """A protocol by name; `short_side` wins over its own, and that over the settings' image size.

    Raises:
        RecoError: there is no such protocol.
    """
    if short_side is not None and short_side < 32:
        raise RecoError(f"short side {short_side}: at least 32 pixels are needed")
    if name == "whole":
        return Protocol(name, short_side or settings.image_size)
    if name == "reco":
        return Protocol(name, short_side or 320, crop=True)
    if name == "mmseg":
        return Protocol(name, short_side or 448, window=224, step=112)
    raise RecoError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOL_NAMES)}")


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Short side to `side`, then the central square; nearest pixels, for photographs as well, as ReCo's code does."""
    width, height = (max(side, int(side * edge / min(image.size))) for edge in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.NEAREST)
    return resized.crop((left, top, left + side, top + side))
