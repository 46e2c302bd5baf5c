"""Loads images as pixels; unusable images are rows with a reason."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from reco_ray.config import SegmentSettings
from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.corpus.read import read_image_bytes
from reco_ray.errors import reason
from reco_ray.files.read_ahead import prefetched
from reco_ray.models.image import ImageTransform

# pixels: uint8 (pixel_height, pixel_width, 3), row by row; null where `reason` or `duplicate_of` is set.
LOADED_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("image_id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixels", pa.large_binary()),
        ("pixel_height", pa.int32()),
        ("pixel_width", pa.int32()),
        ("reason", pa.string()),
        ("duplicate_of", pa.string()),
    ]
)
# Further versions of the image, for loaders that make several.
_VERSION = ("pixels", "pixel_height", "pixel_width")
FURTHER = pa.field("further", pa.list_(pa.struct([LOADED_SCHEMA.field(name) for name in _VERSION])))

ToPixels = Callable[[Image.Image], np.ndarray]


def load_images(
    uris: list[str],
    to_pixels: ToPixels,
    *,
    max_pixels: int,
    short_side: int,
    further: Sequence[ToPixels] = (),
) -> pa.Table:
    """Reads, decodes and resizes images.

    Args:
        uris: of a listing.
        to_pixels, max_pixels, short_side, further: as `decode_images`.

    Returns:
        As `decode_images`, a row for every URI, in order.

    Raises:
        StoreUnavailable: their store does not answer.
    """
    return decode_images(
        zip(uris, prefetched(read_or_error, uris), strict=True),
        to_pixels,
        max_pixels=max_pixels,
        short_side=short_side,
        drop_duplicates=False,
        further=further,
    )


class ImageLoader:
    """Loads the images of a table's rows, and keeps its other columns.

    Args:
        to_pixels: maps an RGB image to uint8 (H, W, 3); must be picklable.
        short_side: minimum size that `to_pixels` needs, pixels; see `decode_image`.
        max_pixels: larger images are rejected.
        further: as `decode_images`.
    """

    def __init__(
        self, to_pixels: ToPixels, *, short_side: int, max_pixels: int, further: Sequence[ToPixels] = ()
    ) -> None:
        self._to_pixels, self._short_side, self._max_pixels = to_pixels, short_side, max_pixels
        self._further = further

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns LOADED_SCHEMA for a table with `uri`; the table's other columns take precedence."""
        loaded = load_images(
            rows["uri"].to_pylist(),
            self._to_pixels,
            max_pixels=self._max_pixels,
            short_side=self._short_side,
            further=self._further,
        )
        for name in rows.column_names:
            if name in loaded.column_names:
                loaded = loaded.drop_columns([name])
            loaded = loaded.append_column(name, rows[name])
        return loaded


def whole_image_loader(transform: ImageTransform, stride: int, settings: SegmentSettings) -> ImageLoader:
    """A loader of whole images at the size at which they are segmented."""
    size = settings.image_size
    to_pixels = partial(transform.fit, short_side=size, multiple=stride)
    return ImageLoader(to_pixels, short_side=size, max_pixels=settings.max_pixels)


def decode_images(
    images: Iterable[tuple[str, bytes | OSError]],
    to_pixels: ToPixels,
    *,
    max_pixels: int,
    short_side: int,
    drop_duplicates: bool,
    further: Sequence[ToPixels] = (),
) -> pa.Table:
    """Decodes and resizes images.

    Args:
        images: URI and encoded bytes, or the error of reading them.
        to_pixels: maps an RGB image to uint8 (H, W, 3), e.g. `ImageTransform.crop`.
        max_pixels, short_side: as `decode_image`.
        drop_duplicates: do not decode repeated content, but mark it as `duplicate_of` the first.
        further: makes more versions of the same decoded image, for models that take other sizes.

    Returns:
        LOADED_SCHEMA, with FURTHER if there are further versions; a row for every image, in order.
    """
    rows = []
    first_uri: dict[str, str] = {}
    for uri, data in images:
        row: dict[str, Any] = {"uri": uri}
        rows.append(row)
        if isinstance(data, OSError):
            row["reason"] = f"cannot be read: {reason(data)}"
            continue
        row["image_id"] = hashlib.sha256(data).hexdigest()
        if drop_duplicates and row["image_id"] in first_uri:
            row["duplicate_of"] = first_uri[row["image_id"]]
            continue
        try:
            image, width, height = decode_image(data, max_pixels=max_pixels, short_side=short_side)
        except DecodeError as error:
            row["reason"] = str(error)
            continue
        first_uri[row["image_id"]] = uri
        row |= {"width": width, "height": height, **_version(to_pixels(image))}
        row["further"] = [_version(make(image)) for make in further]
    return pa.Table.from_pylist(rows, schema=LOADED_SCHEMA.append(FURTHER) if further else LOADED_SCHEMA)


def _version(pixels: np.ndarray) -> dict[str, object]:
    height, width = pixels.shape[:2]
    return {
        "pixels": np.ascontiguousarray(pixels).tobytes(),
        "pixel_height": height,
        "pixel_width": width,
    }


def pixels_of(table: pa.Table, row: int, version: int = 0) -> np.ndarray:
    """The pixels of one loaded row: a view, uint8 (H, W, 3); `version` counts the further ones from 1."""
    columns = table["further"][row][version - 1] if version else {name: table[name][row] for name in _VERSION}
    shape = (columns["pixel_height"].as_py(), columns["pixel_width"].as_py(), 3)
    return np.frombuffer(columns["pixels"].as_buffer(), dtype=np.uint8).reshape(shape)


def read_or_error(uri: str) -> bytes | OSError:
    """The image's bytes, or the OSError of reading them; StoreUnavailable is raised."""
    try:
        return read_image_bytes(uri)
    except OSError as error:
        return error
