"""Encoded bytes -> an upright RGB picture, or one line that says why not."""

import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from reco_ray.errors import reason

# What photographs come in. Pillow opens more, among them EPS, for which it starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class DecodeError(Exception):
    """An image that cannot be used; its text is the reason written to `rejected/`."""


def decode_image(
    data: bytes, *, max_pixels: int, short_side: int | None = None
) -> tuple[Image.Image, int, int]:
    """Decodes one image: first frame, EXIF orientation applied, any mode to RGB (transparency over white).

    Args:
        data: the file's bytes.
        max_pixels: larger images are refused by their header, before anything is decompressed.
        short_side: the caller will shrink to this; JPEGs are then decoded at a reduced scale, never below
            twice it.

    Returns:
        The RGB image, and the width and height of the upright original, pixels.

    Raises:
        DecodeError: empty, not an image, truncated, too large.
    """
    if not data:
        raise DecodeError("empty file")
    try:
        # Pillow warns about what we refuse below, and about damaged metadata that does not touch the pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise DecodeError(f"too large: {width} x {height} pixels, the limit is {max_pixels}")
            if short_side is not None:
                image.draft("RGB", (2 * short_side, 2 * short_side))
            image.load()
            if image.getexif().get(ExifTags.Base.Orientation) in _ROTATED:
                width, height = height, width
            return _to_rgb(ImageOps.exif_transpose(image)), width, height
    except UnidentifiedImageError as error:
        raise DecodeError("not an image that can be decoded") from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too large: refused as a decompression bomb") from error
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds, and one bad file must never stop a run
        raise DecodeError(f"damaged: {reason(error)}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    # 16- and 32-bit grey: Pillow would clip instead of scale.
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float32)
        top = 65_535.0 if image.mode != "F" else max(float(np.nanmax(values, initial=0.0)), 1.0)
        values = np.nan_to_num(values / top * 255.0)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")
