"""Encoded bytes -> an upright RGB picture, or one line that says why not."""

import io
import warnings

from PIL import ExifTags, Image, UnidentifiedImageError

from reco_ray.corpus import heic
from reco_ray.corpus.colour import NoPixels, to_rgb
from reco_ray.corpus.truncated import decode_truncated, pad_webp
from reco_ray.errors import reason

# What photographs come in. Pillow opens more, among them EPS, for which it starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_Transpose = Image.Transpose
# What makes an image of each EXIF orientation upright.
_UPRIGHT = {
    2: _Transpose.FLIP_LEFT_RIGHT,
    3: _Transpose.ROTATE_180,
    4: _Transpose.FLIP_TOP_BOTTOM,
    5: _Transpose.TRANSPOSE,
    6: _Transpose.ROTATE_270,
    7: _Transpose.TRANSVERSE,
    8: _Transpose.ROTATE_90,
}
_SIDES_EXCHANGED = (5, 6, 7, 8)  # orientations that exchange width and height


class DecodeError(Exception):
    """An image that cannot be used; its text is the reason written to `rejected/`."""


def is_image(data: bytes) -> bool:
    """Whether bytes begin as one of the formats that `decode_image` reads; whether they are sound, it does not say."""
    Image.init()  # registers the formats, once
    tests = (Image.OPEN[name][1] for name in _FORMATS if name in Image.OPEN)
    return heic.is_heic(data) or any(test is not None and test(data[:16]) is True for test in tests)


def decode_image(
    data: bytes, *, max_pixels: int, short_side: int | None = None
) -> tuple[Image.Image, int, int]:
    """Decodes one image: first frame, upright, any mode to 8-bit RGB.

    - EXIF orientation is applied; damaged EXIF is ignored, and the image taken as it is stored.
    - Transparency is laid over white. More than 8 bits and floats are scaled to 8 bits, see `colour.py`.
    - A file that breaks off is used if at most 5 % of the pixels are missing, see `truncated.py`.
    - HEIC needs the extra `heic`.

    Args:
        data: the file's bytes.
        max_pixels: larger images are refused by their header, before anything is decompressed.
        short_side: the caller will shrink to this; JPEGs are then decoded at a reduced scale, never below
            twice it.

    Returns:
        The RGB image, and the width and height of the upright original, pixels.

    Raises:
        DecodeError: empty, not an image, truncated, too large, or HEIC without the extra.
    """
    if not data:
        raise DecodeError("empty file")
    data = pad_webp(data)
    formats: tuple[str, ...] = _FORMATS
    if heic.is_heic(data) and heic.register():
        formats = (*_FORMATS, "HEIF")

    def opened(content: bytes) -> Image.Image:
        return Image.open(io.BytesIO(content), formats=formats)

    def reduced(content: bytes) -> Image.Image:
        return _reduced(opened(content), short_side)

    try:
        # Pillow warns about what we refuse below, and about damaged metadata that does not touch the pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = opened(data)
            width, height = image.size
            if width * height > max_pixels:
                raise DecodeError(f"too large: {width} x {height} pixels, the limit is {max_pixels}")
            try:
                _reduced(image, short_side).load()
            except Exception:
                completed = decode_truncated(data, width * height, reduced)
                if completed is None:
                    raise
                image = completed
            orientation = _orientation(image)
            rgb = to_rgb(image, data)
            if orientation in _UPRIGHT:
                rgb = rgb.transpose(_UPRIGHT[orientation])
            if orientation in _SIDES_EXCHANGED:
                width, height = height, width
            return rgb, width, height
    except UnidentifiedImageError as error:
        if heic.is_heic(data) and not heic.available():
            raise DecodeError(heic.MISSING) from error
        raise DecodeError("not an image that can be decoded") from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too large: refused as a decompression bomb") from error
    except NoPixels as error:
        raise DecodeError(str(error)) from error
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds, and one bad file must never stop a run
        raise DecodeError(f"damaged: {reason(error)}") from error


def _reduced(image: Image.Image, short_side: int | None) -> Image.Image:
    """The image, which if it is a JPEG will be decoded at a scale that is enough for `short_side`."""
    if short_side is not None:
        image.draft("RGB", (2 * short_side, 2 * short_side))
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 where there is none or it cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the block is damaged; Pillow raises a dozen kinds
        return 1
    return found if isinstance(found, int) else 1
