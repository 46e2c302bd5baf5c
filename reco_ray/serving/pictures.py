"""Thumbnails of corpus images, and example photographs."""

import io
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.corpus.index.shard_files import ImageTable
from reco_ray.corpus.read import list_images, read_image_bytes
from reco_ray.serving.lru import ByteLRU
from reco_ray.serving.problems import Problem

THUMBNAIL_SIDE = 256  # pixels, the longer side
EXEMPLAR_SIDE = 640
EXAMPLE_SIDE = 1280
MOST_EXAMPLES = 12
# Default examples: photographs in packages of the extra `demo`.
_PACKAGED = {
    "skimage": ("data/chelsea.png", "data/coffee.png", "data/rocket.jpg", "data/motorcycle_left.png"),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}


@dataclass(frozen=True)
class ExamplePhoto:
    """An example photograph."""

    id: str
    name: str
    uri: str


def list_examples(uri: str | None) -> dict[str, ExamplePhoto]:
    """Example photographs by id: the first images of a source, or those of installed packages.

    Raises:
        RecoError: the source has no images.
    """
    uris = _packaged() if uri is None else sorted(list_images(uri).table["uri"].to_pylist())
    examples: dict[str, ExamplePhoto] = {}
    for each in uris[:MOST_EXAMPLES]:
        name = each.rpartition("/")[2].rpartition(".")[0] or each.rpartition("/")[2]
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "image"
        unique = plain
        while unique in examples:  # until it differs from all others
            unique = f"{unique}-{len(examples)}"
        examples[unique] = ExamplePhoto(unique, name, each)
    return examples


class PictureCache:
    """Reads, scales and caches images.

    Args:
        max_pixels: larger images are not decoded.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._remembered: ByteLRU[bytes] = ByteLRU(64_000_000)

    def thumbnail(self, images: ImageTable, image_id: str) -> bytes:
        """A JPEG thumbnail of an image of the index.

        Raises:
            Problem: 404, no such image, or its file is missing or damaged.
        """
        found = self._remembered.get(image_id)
        if found is None:
            uri = images.uri_of(image_id)
            if uri is None:
                raise Problem(404, f"there is no image {image_id!r} in the index")
            found = self._shrunk(uri, THUMBNAIL_SIDE)
            self._remembered.put(image_id, found, len(found))
        return found

    def example(self, example: ExamplePhoto) -> bytes:
        """A JPEG of an example.

        Raises:
            Problem: 404, its file is missing or damaged.
        """
        key = ("example", example.id)
        found = self._remembered.get(key)
        if found is None:
            found = self._shrunk(example.uri, EXAMPLE_SIDE)
            self._remembered.put(key, found, len(found))
        return found

    def exemplar(self, image_id: str, uri: str) -> bytes:
        """A JPEG of an exemplar of a concept.

        Raises:
            Problem: 404, its file is missing or damaged.
        """
        key = ("exemplar", image_id)
        found = self._remembered.get(key)
        if found is None:
            found = self._shrunk(uri, EXEMPLAR_SIDE)
            self._remembered.put(key, found, len(found))
        return found

    def _shrunk(self, uri: str, side: int) -> bytes:
        try:
            image, _, _ = decode_image(read_image_bytes(uri), max_pixels=self._max_pixels, short_side=side)
        except (OSError, DecodeError) as error:
            raise Problem(404, "the image is in the index, but its file is gone or damaged") from error
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()


def _packaged() -> list[str]:
    found = []
    for package, names in _PACKAGED.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            files = [Path(spec.origin).parent / name for name in names]
            found += [str(file) for file in files if file.exists()]
    return found
