"""Any of Pillow's modes -> 8-bit RGB.

Samples of more than 8 bits have no fixed white: cameras store 10, 12 or 14 bits in 16, instruments whatever they
measure. White is therefore decided as follows.

- Unsigned integers: the file's own statement (TIFF's MaxSampleValue and BitsPerSample, PNG's sBIT) where it is below
  the container's maximum and fits the data; otherwise the smallest of 8, 10, 12, 14 and 16 bits that holds all values.
- Floats: 1 where all values are in 0..1 and the largest is at least 1/16; 255 where all are in 0..255 and the largest
  is at least 16.
- Everything else (signed or 32-bit integers, other floats): black and white are the 0.1 and 99.9 percentiles. NaN and
  infinity are black, and so are values beyond 1e30, by which rasters mark the absence of data.
"""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_BITS = (8, 10, 12, 14, 16)
_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")
_NO_DATA = 1e30
_PHOTOMETRIC, _MAX_SAMPLE_VALUE, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 262, 281, 258, 339  # tags of TIFF
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B"}


class NoPixels(Exception):
    """Nothing in the image can be shown."""


def to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """Converts a loaded image; transparency is laid over white.

    Args:
        image: of the file `data`.
        data: read again for what Pillow does not tell.

    Raises:
        NoPixels: all values are NaN or infinite.
    """
    if image.mode == "RGB" and image.format not in ("PNG", "TIFF"):
        return image
    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image))).convert("RGB")
    if image.mode.startswith("I"):
        return Image.fromarray(_from_integers(image, data)).convert("RGB")
    image = _from_16_bits(image, data)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # only with inPlace
        return converted
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _from_integers(image: Image.Image, data: bytes) -> np.ndarray:
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if values.dtype == np.int32 and image.format == "TIFF" and _first(tags.get(_SAMPLE_FORMAT, 1)) == 1:
        values = values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
    largest = int(values.max())
    if int(values.min()) < 0 or largest > 65_535:
        return _stretched(values)
    top = white(largest, _declared(image, data))
    grey = (values.astype(np.float32) * (255 / top)).round().clip(0, 255).astype(np.uint8)
    return 255 - grey if image.mode.startswith("I;16") and _first(tags.get(_PHOTOMETRIC)) == 0 else grey


def _from_floats(values: np.ndarray) -> np.ndarray:
    usable = np.isfinite(values) & (np.abs(values) < _NO_DATA)
    if not usable.any():
        raise NoPixels("no pixels: every value is NaN or infinite")
    low, high = float(values[usable].min()), float(values[usable].max())
    top = next((top for top in (1.0, 255.0) if low >= 0 and top / 16 <= high <= top), None)
    if top is None:
        return _stretched(values, usable)
    return (np.where(usable, values, 0) * (255 / top)).round().astype(np.uint8)


def _stretched(values: np.ndarray, usable: np.ndarray | None = None) -> np.ndarray:
    """All but the outermost thousandths of the values, spread over 0..255; uint8 of the same shape."""
    chosen = values.reshape(-1) if usable is None else values[usable]
    low, high = (float(value) for value in np.percentile(chosen, (0.1, 99.9)))
    if low == high:
        low, high = float(chosen.min()), float(chosen.max())
    known = values if usable is None else np.where(usable, values, low)
    return (
        ((known.astype(np.float64) - low) * (255 / max(high - low, 1e-30)))
        .clip(0, 255)
        .round()
        .astype(np.uint8)
    )


def white(largest: int, declared: int | None = None) -> int:
    """The value of unsigned integers that is white: what the file states, or the end of the fewest bits that hold all.

    Args:
        largest: of the values, 65,535 at most.
    """
    if declared is not None and largest <= declared:
        return declared
    return next(2**bits - 1 for bits in _BITS if largest < 2**bits)


def _declared(image: Image.Image, data: bytes) -> int | None:
    """The white that the file itself states, if it is below that of 16 bits."""
    stated: list[int | None] = []
    if tags := getattr(image, "tag_v2", None):
        stated = [_first(tags.get(_MAX_SAMPLE_VALUE)), 2 ** (_first(tags.get(_BITS_PER_SAMPLE)) or 16) - 1]
    elif image.format == "PNG" and (place := data.find(b"sBIT", 0, data.find(b"IDAT"))) >= 0:
        stated = [2 ** data[place + 4] - 1]
    return min((white for white in stated if white and 0 < white < 65_535), default=None)


def _first(value: object) -> int | None:
    found = value[0] if isinstance(value, tuple) and value else value
    return found if isinstance(found, int) else None


def _from_16_bits(image: Image.Image, data: bytes) -> Image.Image:
    """An image of several channels, of which Pillow keeps the upper bytes: if those are dark, both bytes are read."""
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    if np.asarray(image)[..., :3].max() >= 64:
        return image
    again: Any = Image.open(io.BytesIO(data), formats=(image.format,))
    tiles = []
    for tile in again.tile:
        raw, *others = (tile.args,) if isinstance(tile.args, str) else tile.args
        channels, _, order = raw.partition(";")
        if order not in _SWAPPED:
            return image
        # Pillow has no LA of the other byte order: its four bytes a pixel are read as four channels.
        swapped = "RGBA" if channels == "LA" else f"{channels};{_SWAPPED[order]}"
        tiles.append(tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *others)))
    again.tile = tiles  # the lower bytes are the upper ones of the other byte order
    again.load()
    upper, lower = np.asarray(image).astype(np.uint16), np.asarray(again)
    colours = upper[..., :3] << 8 | (lower[..., 1:2] if swapped == "RGBA" else lower[..., :3])
    top = white(int(colours.max()), _declared(image, data))
    shown = np.asarray(image).copy()
    shown[..., :3] = (colours * (255 / top)).round()
    return Image.fromarray(shown, image.mode)
