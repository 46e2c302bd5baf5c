"""Reads label ids from image files of various modes and formats. Pillow and numpy only."""

import io

import numpy as np
from PIL import Image

from reco_ray.errors import RecoError, UnreadableError, reason

_FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # lossless formats
_LOSSY = ("JPEG", "WEBP")
_PLAIN = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_WITH_ALPHA = ("LA", "PA", "RGBA")


def read_mask(data: bytes) -> np.ndarray:
    """Reads a binary mask: bool (H, W), True where it is bright.

    Raises:
        RecoError: If it cannot be read; the message does not contain the file's name.
    """
    return np.asarray(_open(data, (*_FORMATS, *_LOSSY))[0].convert("L")) > 127


def read_ids(data: bytes, first_channel: bool = False) -> np.ndarray:
    """Reads label ids.

    Accepts grey files of 1 to 16 bits, palette files (indices, not colours), and grey saved as RGB with three equal
    channels or with an opaque alpha channel.

    Args:
        data: Content of the file.
        first_channel: Whether the ids are in the red channel of an RGB file.

    Returns:
        Integer (H, W).

    Raises:
        UnreadableError: If the file is coloured, transparent, in a lossy format or damaged; the message does not
            contain the file's name.
    """
    image, stored = _open(data, _FORMATS)
    if image.mode in _WITH_ALPHA:
        if np.asarray(image.getchannel("A")).min() < 255:
            raise UnreadableError(
                f"has transparent pixels ({image.mode}), which have no class: save it without an alpha channel"
            )
        channels = [image.getchannel(band) for band in image.getbands()[:-1]]
    elif image.mode in _PLAIN:
        channels = [image]
    elif image.mode == "RGB":
        channels = list(image.split())
    else:
        raise UnreadableError(f"is of mode {image.mode}: label files hold one integer per pixel")
    if stored.endswith(";16B") and image.mode not in _PLAIN:
        raise UnreadableError(
            f"has 16 bits per channel and {len(image.getbands())} channels: save it as 16-bit grey"
        )
    values = [np.asarray(channel) for channel in channels]
    if first_channel:
        if len(values) != 3:
            raise UnreadableError(
                f"{len(values)} channel, but its ids are expected in the red channel of three"
            )
        return values[0]
    if any((value != values[0]).any() for value in values[1:]):
        raise UnreadableError(
            f"{len(values)} channels of colours ({image.mode}): label files hold one class number per pixel, "
            "as 8-bit or 16-bit grey or with a palette"
        )
    scale = {"L;2": 85, "L;4": 17}.get(stored, 1)  # Pillow scales 2-bit and 4-bit grey to 0-255
    return values[0].astype(np.int64) // scale


def _open(data: bytes, formats: tuple[str, ...]) -> tuple[Image.Image, str]:
    """The decoded image, and Pillow's raw mode of the file, such as `L;4`."""
    if not data:
        raise UnreadableError("the label file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=(*_FORMATS, *_LOSSY))
        if image.format not in formats:
            raise UnreadableError(
                f"the label file is {image.format}, a lossy format that changes label ids: save it as PNG"
            )
        stored = image.tile[0].args if image.tile else ""  # the raw mode, or a tuple that begins with it
        image.load()
        return image, stored[0] if isinstance(stored, tuple) else str(stored)
    except RecoError:
        raise
    except Exception as error:  # Pillow's plugins raise many types
        raise UnreadableError(f"the label file cannot be read: {reason(error)}") from error
