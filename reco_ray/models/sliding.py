"""Sliding windows, and resizing images to multiples of an encoder's stride. Pure torch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def fit_to_stride(images: torch.Tensor, stride: int) -> torch.Tensor:
    """Resizes (b, c, H, W) to the nearest multiples of `stride`; returns the same tensor if it already fits.

    A patch embedding would otherwise drop the last rows and columns, and the features, resized to the whole image,
    would be misaligned.
    """
    height, width = images.shape[-2:]
    size = tuple(max(1, round(side / stride)) * stride for side in (height, width))
    if size == (height, width):
        return images
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)


def slide(
    encode: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    *,
    window: int,
    step: int,
    stride: int = 1,
) -> torch.Tensor:
    """Runs a dense encoder in sliding windows and averages where they overlap.

    The last window of a row or column ends at the border. A side shorter than `window` is covered by one window; if one
    window covers the image, the result is exactly `encode(images)`.

    Args:
        encode: (b, 3, h, w) -> (b, c, h / stride, w / stride), features or scores.
        images: (b, 3, H, W), H and W multiples of `stride`.
        window: side of the square windows in pixels, a multiple of `stride`.
        step: distance between windows in pixels, a multiple of `stride`, at most `window`.
        stride: pixels per output location; 1 for scores at the size of the image.

    Returns:
        (b, c, H / stride, W / stride), in the dtype of `encode`. Averages of unit vectors are not unit vectors.

    Raises:
        ValueError: a size is not a multiple of `stride`, or windows would leave gaps.
    """
    height, width = images.shape[-2:]
    for name, value in (("window", window), ("step", step), ("height", height), ("width", width)):
        if value <= 0 or value % stride:
            raise ValueError(f"{name} {value} is not a positive multiple of the stride {stride}")
    if step > window:
        raise ValueError(f"step {step} exceeds the window {window}: pixels in between would be skipped")
    tall, wide = min(window, height), min(window, width)
    total: torch.Tensor | None = None
    for top in _offsets(height, tall, step):
        for left in _offsets(width, wide, step):
            part = encode(images[..., top : top + tall, left : left + wide])
            if total is None:
                total = part.new_zeros(*part.shape[:2], height // stride, width // stride)
                count = part.new_zeros(height // stride, width // stride)
            rows = slice(top // stride, (top + tall) // stride)
            columns = slice(left // stride, (left + wide) // stride)
            total[..., rows, columns] += part
            count[rows, columns] += 1
    assert total is not None  # there is always a first window
    return total / count


def _offsets(side: int, window: int, step: int) -> list[int]:
    return [*range(0, side - window, step), side - window]
