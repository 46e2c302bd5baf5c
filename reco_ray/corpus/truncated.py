"""Images whose files break off near their end: decoded as far as they go, if nearly all of the picture is there.

Pillow's own switch for this, `ImageFile.LOAD_TRUNCATED_IMAGES`, is global and accepts any file, however little of it is
there; so the file is completed instead, and what is missing is measured.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

MOST_MISSING = 0.05  # of the pixels
_FEW_PIXELS = 512  # that may be missing of any image: two of JPEG's blocks of 16 x 16
_WEBP_ROOM = 1024  # bytes
_END_OF_JPEG = b"\xff\xd9"


def decode_truncated(
    data: bytes, area: int, open_image: Callable[[bytes], Image.Image]
) -> Image.Image | None:
    """Decodes an image of which Pillow says that it is truncated or damaged.

    At most 5 % of the pixels may be missing, or 512 of a small image (but never half of it). What is missing is grey
    in a JPEG, black elsewhere. Progressive JPEGs are complete enough when their last scans have begun. WebP is
    completed by `pad_webp`; AVIF, HEIC and GIFs with transparency never are.

    Args:
        data: the file's bytes.
        area: pixels that the image has by its header.
        open_image: opens bytes as an image that is not loaded yet, perhaps at a reduced scale.

    Returns:
        The loaded image, None if too much is missing.
    """
    image = open_image(data)
    if image.format in ("JPEG", "MPO"):
        return _jpeg(data, area, open_image)
    if image.format in ("PNG", "BMP", "TIFF") or (image.format == "GIF" and "transparency" not in image.info):
        return _rows(data, area, open_image)
    return None


def pad_webp(data: bytes) -> bytes:
    """A WebP of whose bytes at most 5 % are missing, filled up with zeros; anything else as it is.

    Its header states its length, and Pillow's decoder takes whole files only.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return data
    missing = int.from_bytes(data[4:8], "little") + 8 - len(data)
    if not 0 < missing <= MOST_MISSING * len(data):
        return data
    # Longer than it was: of an image that ends early the decoder may read a little more than of the whole one.
    padded = bytearray(data + bytes(missing + _WEBP_ROOM + (len(data) + missing) % 2))
    place = 12
    while place + 8 <= len(data):
        end = place + 8 + int.from_bytes(data[place + 4 : place + 8], "little")
        if end > len(data):  # the chunk that breaks off
            padded[place + 4 : place + 8] = (len(padded) - place - 8).to_bytes(4, "little")
        place = end + end % 2
    padded[4:8] = (len(padded) - 8).to_bytes(4, "little")
    return bytes(padded)


def _tolerable(share: float, area: int) -> bool:
    """Whether a share of `area` pixels may be missing."""
    return share <= max(MOST_MISSING, _FEW_PIXELS / area) and share < 0.5


def _jpeg(data: bytes, area: int, open_image: Callable[[bytes], Image.Image]) -> Image.Image | None:
    """libjpeg fills the blocks that it lacks with mid-grey, once it has met an end mark."""
    data = data.rstrip(b"\0")  # a download that was cut off may leave its reserved space behind
    if not _all_scans_begun(data):
        return None
    image = open_image(data + _END_OF_JPEG)
    image.load()
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    grey = ((pixels == 128) | (pixels == 127)).all(axis=2)  # 127: inverted, as in CMYK
    share = np.logical_and.accumulate(grey[::-1], axis=0).mean()
    return image if _tolerable(float(share), area) else None


def _rows(data: bytes, area: int, open_image: Callable[[bytes], Image.Image]) -> Image.Image | None:
    """Decodes into an image of zeros and into one of other values: pixels that differ were in neither file."""
    images = []
    for value in (0, 255):
        image = open_image(data)
        image.im = Image.new(image.mode, image.size, value).im
        try:
            image.load()
        except Exception:  # the very one that led here
            image.tile = []  # type: ignore[attr-defined] # decoded as far as it goes
            image.load()
        images.append(image)
    first, second = (np.asarray(image).reshape(image.height, image.width, -1) for image in images)
    share = (first != second).any(axis=2).mean()
    return images[0] if _tolerable(float(share), area) else None


def _all_scans_begun(data: bytes) -> bool:
    """Whether a JPEG is sequential, or a progressive one of which every coefficient has been given its last bit."""
    place, progressive = 2, False
    components: set[int] = set()
    done: set[tuple[int, bool]] = set()  # component, whether all but its mean
    while place + 4 <= len(data):
        if data[place] != 0xFF or data[place + 1] in (0x00, 0xFF, *range(0xD0, 0xD8)):
            following = data.find(b"\xff", place + 1)
            place = following if following >= 0 else len(data)
            continue
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + length]
        if marker in (0xC0, 0xC1):
            return True
        if marker == 0xC2 and len(body) >= 6:
            progressive = True
            components = {body[6 + 3 * number] for number in range(min(body[5], (len(body) - 6) // 3))}
        if marker == 0xDA and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            if bits & 15 == 0:
                chosen = [body[1 + 2 * number] for number in range(body[0])]
                done |= {(component, False) for component in chosen if first == 0}
                done |= {(component, True) for component in chosen if last == 63}
        place += 2 + length
    return progressive and done >= {(component, rest) for component in components for rest in (False, True)}
