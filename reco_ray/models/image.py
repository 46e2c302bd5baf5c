"""Image geometry and normalisation shared by all models: PIL in, uint8 pixels out, floats only on the device."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class ImageTransform:
    """How a model wants its pixels.

    size: side of the square crop, pixels. mean, std: per RGB channel, for values in [0, 1].
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def crop(self, image: Image.Image, size: int | None = None) -> np.ndarray:
        """RGB image -> uint8 (size, size, 3): short side resized to `size`, then the centre crop."""
        side = size or self.size
        scale = side / min(image.size)
        width, height = (max(side, round(edge * scale)) for edge in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        # Only the pixels that survive the crop are computed: `box` is the crop in source coordinates.
        sx, sy = image.width / width, image.height / height
        box = (left * sx, top * sy, (left + side) * sx, (top + side) * sy)
        return np.asarray(image.resize((side, side), _RESAMPLING[self.interpolation], box=box))

    def stretch(self, image: Image.Image, size: int) -> np.ndarray:
        """RGB image -> uint8 (size, size, 3): the whole image, its sides scaled to equal length."""
        return np.asarray(image.resize((size, size), _RESAMPLING[self.interpolation]))

    def fit(self, image: Image.Image, short_side: int, multiple: int, max_aspect: float = 4.0) -> np.ndarray:
        """RGB image -> uint8 (H, W, 3), whole, short side near `short_side`, both sides a multiple of `multiple`.

        Images longer than `max_aspect` times their height (or the reverse) are squeezed to that ratio, so that
        one panorama cannot take all the memory.
        """
        scale = short_side / min(image.size)
        longest = short_side * max_aspect
        width, height = (
            max(multiple, round(min(edge * scale, longest) / multiple) * multiple) for edge in image.size
        )
        return np.asarray(image.resize((width, height), _RESAMPLING[self.interpolation]))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (b, H, W, 3) -> float32 (b, 3, H, W), normalised; channels-last in memory, as convolutions like it."""
        device = pixels.device
        mean = torch.tensor(self.mean, device=device) * 255
        std = torch.tensor(self.std, device=device) * 255
        return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)
