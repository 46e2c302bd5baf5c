"""Images as files that other tools read."""

import io
import warnings

from PIL import ExifTags, Image

from reco_ray.corpus.decode import DecodeError, decode_image

# Larger ones have no mask: `segment.max_pixels` cannot be above this.
_MAX_PIXELS = 178_956_970
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}
_MODES = ("RGB", "L")
_QUALITY = 95


def image_file(data: bytes, size: tuple[int, int], kinds: tuple[str, ...]) -> tuple[bytes, str]:
    """The file for an image: its own bytes if every tool reads them as reco-ray does, else a JPEG of its pixels.

    Its own bytes stay if the file is whole, of one of the kinds, upright without EXIF's help, and 8-bit RGB or grey.

    Args:
        data: the encoded image.
        size: height and width of its mask, pixels.
        kinds: Pillow's formats that may stay; of JPEG and PNG.

    Returns:
        The file's content and its suffix.

    Raises:
        DecodeError: the image cannot be decoded, or has another size than its mask.
    """
    if (kind := _plain_kind(data, size)) in kinds:
        return data, _SUFFIXES[str(kind)]
    image, width, height = decode_image(data, max_pixels=_MAX_PIXELS)
    if (height, width) != size:
        raise DecodeError(
            f"changed since it was segmented: {width} x {height} pixels instead of {size[1]} x {size[0]}"
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue(), ".jpg"


def _plain_kind(data: bytes, size: tuple[int, int]) -> str | None:
    """The kind of a file that can stay as it is; None if it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=tuple(_SUFFIXES))
            if (image.height, image.width) != size or image.mode not in _MODES:
                return None
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 or "transparency" in image.info:
                return None
            image.load()
            return image.format
    except Exception:  # Pillow's plugins raise a dozen kinds; `decode_image` says what is wrong
        return None
