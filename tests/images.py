"""Real image files for the tests, made small from photographs that installed packages carry."""

import io
import struct
import zlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

_PHOTOGRAPHS = {
    "foolbox": ("data/imagenet_*.jpg",),
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/rocket.jpg",
        "data/motorcycle_left.png",
        "data/hubble_deep_field.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@cache
def photographs() -> tuple[Path, ...]:
    """The 28 photographs, where their packages keep them."""
    found: list[Path] = []
    for package, patterns in _PHOTOGRAPHS.items():
        spec = find_spec(package)
        assert spec is not None, f"{package} is not installed: pip install reco-ray[demo]"
        assert spec.origin is not None
        found += [file for pattern in patterns for file in sorted(Path(spec.origin).parent.glob(pattern))]
    assert len(found) == 28
    return tuple(found)


@cache
def photograph(number: int, long_side: int = 96) -> Image.Image:
    """One photograph, RGB, shrunk."""
    with Image.open(photographs()[number]) as image:
        small = image.convert("RGB")
    small.thumbnail((long_side, long_side))
    return small


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def heic(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    """The image as telephones store it: the orientation is a property of the container, and in EXIF once more."""
    import pillow_heif  # writes HEIC; the package itself reads with pi_heif, which cannot

    file = pillow_heif.HeifFile()
    frame = file.add_frombytes(image.mode, image.size, image.tobytes())
    if exif is not None:
        frame.info["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    file.save(buffer, quality=90)
    return buffer.getvalue()


def write_photographs(folder: Path, count: int, long_side: int = 96) -> list[Path]:
    """Writes `count` different photographs; beyond the 28 there are, mirrored ones."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        image = photograph(number % 28, long_side)
        if number >= 28:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        files.append(folder / f"{number:03d}.jpg")
        files[-1].write_bytes(encoded(image, quality=90))
    assert count <= 56
    return files


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid black PNG of one bit a pixel, written row by row: 50,000 x 50,000 are 300 kB."""
    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", pixels) + _png_chunk(b"IEND", b"")
    return _PNG_SIGNATURE + chunks


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that claims a size and then ends: whoever decodes it finds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _PNG_SIGNATURE + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", b"")


def png_of_samples(samples: np.ndarray, significant_bits: int | None = None) -> bytes:
    """uint16 (H, W, 1 to 4) -> a PNG of 16 bits a channel, which Pillow itself cannot write in colour.

    Args:
        significant_bits: what a chunk sBIT says of every channel.
    """
    height, width, channels = samples.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    if significant_bits is not None:
        chunks += _png_chunk(b"sBIT", bytes([significant_bits] * channels))
    chunks += _png_chunk(b"IDAT", zlib.compress(rows)) + _png_chunk(b"IEND", b"")
    return _PNG_SIGNATURE + chunks
