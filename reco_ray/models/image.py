"""Image resizing and normalisation for all models. Images stay uint8 until they are on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # processes that only read and resize images import no torch
    import torch

_MAX_ASPECT = 4.0  # longer images are squeezed: it bounds the memory that a panorama takes
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class ImageTransform:
    """The input format of a model.

    Attributes:
        size: side of the square crop, in pixels.
        mean: per RGB channel, for values in [0, 1].
        std: per RGB channel, for values in [0, 1].
        interpolation: "bilinear" or "bicubic".
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def crop(self, image: Image.Image, size: int | None = None) -> np.ndarray:
        """Resizes the short side to `size` and crops the centre: RGB image -> uint8 (size, size, 3)."""
        side = size or self.size
        scale = side / min(image.size)
        width, height = (max(side, round(edge * scale)) for edge in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        # `box` is the crop in source coordinates, so that only pixels inside it are computed.
        sx, sy = image.width / width, image.height / height
        box = (left * sx, top * sy, (left + side) * sx, (top + side) * sy)
        return np.asarray(image.resize((side, side), _RESAMPLING[self.interpolation], box=box))

    def stretch(self, image: Image.Image, size: int) -> np.ndarray:
        """Resizes the whole image to a square, ignoring its aspect ratio: RGB image -> uint8 (size, size, 3)."""
        return np.asarray(image.resize((size, size), _RESAMPLING[self.interpolation]))

    def fit(self, image: Image.Image, short_side: int, multiple: int) -> np.ndarray:
        """Resizes the whole image so that its short side is near `short_side`.

        Args:
            image: RGB.
            short_side: pixels.
            multiple: of which both sides of the result are multiples.

        Returns:
            uint8 (H, W, 3).
        """
        scale = short_side / min(image.size)
        longest = short_side * _MAX_ASPECT
        width, height = (
            max(multiple, round(min(edge * scale, longest) / multiple) * multiple) for edge in image.size
        )
        return np.asarray(image.resize((width, height), _RESAMPLING[self.interpolation]))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalises pixels: uint8 (b, H, W, 3) -> float32 (b, 3, H, W), channels-last in memory."""
        import torch

        device = pixels.device
        mean = torch.tensor(self.mean, device=device) * 255
        std = torch.tensor(self.std, device=device) * 255
        return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)
