"""Images that a caller has in memory (arrays, tensors, PIL images of any mode) -> 8-bit RGB. Imports no torch."""

from typing import Any

import numpy as np
from PIL import Image

from reco_ray.corpus.colour import NoPixels, to_rgb, white
from reco_ray.errors import UnreadableError, reason

_CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGBA
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_OVERSHOOT = 0.01  # of a range: what resizing adds beyond it
_EXPECTED = (
    "expected (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels, of bool, uint8, uint16, or of floats in 0..1 or "
    "0..255"
)


def picture_of(image: Any) -> Image.Image:
    """An image in memory as RGB of the same size; transparency over white.

    Args:
        image: a PIL image of any mode, or what NumPy or PyTorch make an array of: (H, W), (H, W, C) or (C, H, W) with C
            = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA); leading axes of length 1 are dropped. Where both ends
            could be the channels, they are the last axis of an array and the first of a tensor. White is the largest
            value of 8, 10, 12, 14 or 16 bits, the fewest that hold all integers; of floats it is 1 if none is larger,
            else 255.

    Raises:
        UnreadableError: another shape, dtype or range.
    """
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise UnreadableError(f"image: {image.width} x {image.height} pixels: there are none")
        return _as_rgb(image)
    array, channels_first = _array(image)
    said = f"image: shape {tuple(array.shape)}, dtype {array.dtype}"
    pixels = array
    while pixels.ndim > 3 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or not pixels.size:
        raise UnreadableError(f"{said}: {_EXPECTED}, one image at a time")
    first, last = pixels.shape[0] in _CHANNELS, pixels.shape[2] in _CHANNELS
    if first and (channels_first or not last):
        pixels = pixels.transpose(1, 2, 0)
    elif not last:
        raise UnreadableError(f"{said}: {_EXPECTED}")
    eight = np.ascontiguousarray(_eight_bits(pixels, said))
    mode = _MODES[eight.shape[2]]
    return _as_rgb(Image.fromarray(eight[..., 0] if mode == "L" else eight, mode))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    try:
        return to_rgb(image.copy(), b"")  # a copy is of no file, in which more bits could be looked for
    except NoPixels as error:
        raise UnreadableError(f"image: mode {image.mode}, {image.width} x {image.height}: {error}") from error


def _array(image: Any) -> tuple[np.ndarray, bool]:
    """As NumPy's, and whether its kind usually has the channels first."""
    is_tensor = hasattr(image, "detach") and hasattr(image, "cpu")
    if is_tensor:
        image = image.detach().cpu()
        if image.is_floating_point():
            image = image.float()  # NumPy has no bfloat16
    try:
        return np.asarray(image), is_tensor
    except Exception as error:  # ragged lists, and whatever an __array__ raises
        raise UnreadableError(
            f"image: no array can be made of a {type(image).__name__}: {reason(error)}"
        ) from error


def _eight_bits(pixels: np.ndarray, said: str) -> np.ndarray:
    """Values of any dtype -> uint8."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels * np.uint8(255)
    if pixels.dtype.kind not in "iuf":
        raise UnreadableError(f"{said}: {_EXPECTED}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UnreadableError(f"{said}: some values are no finite numbers")
    if pixels.dtype.kind == "f":
        top = 1.0 if high <= 1 + _OVERSHOOT else 255.0
        slack = _OVERSHOOT * top
    else:
        top, slack = float(white(int(min(high, 65_535)))), 0.0
    if low < -slack or high > top + slack:
        raise UnreadableError(
            f"{said}: values from {low:g} to {high:g}: {_EXPECTED}; undo a normalisation first"
        )
    return (pixels.astype(np.float32) * (255.0 / top)).round().clip(0, 255).astype(np.uint8)
