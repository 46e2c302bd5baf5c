"""The loader of the embed stage: reads shards of a recorded listing, and yields parts with decoded crops."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from reco_ray.corpus import web
from reco_ray.corpus.generations import Generation, holds_container, part_name, read_shard
from reco_ray.corpus.load import decode_images, read_or_error
from reco_ray.corpus.read import read_members
from reco_ray.files.read_ahead import iterated_ahead, prefetched

_END: Any = object()
_WEB_THREADS = 32
_CHANGED = "changed since it was listed: it ends before what is embedded of it"


class LoadParts:
    """Yields the parts of a unit of shards. A class, so that it can be sent to Ray's tasks.

    Args:
        out, generations: the recorded listing.
        to_pixels, short_side: the model's crop, and the minimum size that it needs, pixels.
        max_pixels: larger images are rejected.
        part_size: images per part.
        frames_per_second: of videos.
        image_column: of tables; None = found by name.
        requests_per_host: concurrent requests of one loader.
    """

    def __init__(
        self,
        out: str,
        generations: list[Generation],
        to_pixels: Callable[..., np.ndarray],
        *,
        short_side: int,
        max_pixels: int,
        part_size: int,
        frames_per_second: float,
        image_column: str | None = None,
        requests_per_host: int = web.PER_HOST_LIMIT,
    ) -> None:
        self._out, self._generations, self._to_pixels = out, generations, to_pixels
        self._short_side, self._max_pixels, self._part_size = short_side, max_pixels, part_size
        self._frames_per_second, self._requests_per_host = frames_per_second, requests_per_host
        self._image_column = image_column

    def __call__(self, unit: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        web.limit_per_host(self._requests_per_host)
        for row in unit.to_pylist():
            shard, rows = row["shard"], read_shard(self._out, self._generations, row["shard"])
            if holds_container(rows):
                uri, size = rows["uri"][0].as_py(), rows["size"][0].as_py()
                yield from self._container(shard, uri, size, row["done"], row["end"])
            else:
                uris = rows["uri"].to_pylist()
                threads = _WEB_THREADS if any(map(web.is_web, uris)) else 8
                read = prefetched(read_or_error, uris, threads, 2 * threads)
                yield part_name(shard), self._decoded(zip(uris, read, strict=True))

    def _container(
        self, shard: int, uri: str, size: int, done: list[int], end: int | None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Streams the images of a container in parts of `part_size`; `done` parts are read without decoding.

        A container that has changed may end before its committed parts: these are kept, and the rest is one row with
        an error.
        """
        images = iterated_ahead(read_members(uri, size, self._frames_per_second, self._image_column))
        following = next(images, _END)
        number, top = 0, max(done, default=-1)
        while number == 0 or following is not _END:
            first = [] if following is _END else [following]
            part = chain(first, islice(images, self._part_size - 1))
            if number in done:
                deque(part, maxlen=0)
                following = next(images, _END)
            else:
                rows = self._decoded(part)
                following = next(images, _END)
                yield part_name(shard, number, last=following is _END and number > top), rows
            number += 1
        if done and number <= top + (end is None):
            lost: list[tuple[str, bytes | OSError]] = [(uri, OSError(_CHANGED))]
            for place in [*range(number, top + 1), *([top + 1] if end is None else [])]:
                if place not in done:
                    yield part_name(shard, place, last=place > top), self._decoded(lost)
                    lost = []

    def _decoded(self, images: Iterable[tuple[str, bytes | OSError]]) -> pa.Table:
        return decode_images(
            images,
            self._to_pixels,
            max_pixels=self._max_pixels,
            short_side=self._short_side,
            drop_duplicates=True,
        )
