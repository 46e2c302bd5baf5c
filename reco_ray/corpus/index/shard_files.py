"""Opens the files of an index without reading them whole: shards are memory-mapped, images are read by row group.

Shards in an object store are downloaded once to $RECO_CACHE (default ~/.cache/reco-ray) and mapped from there. The
cache may be deleted at any time.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.contents import IndexContent
from reco_ray.errors import UnreadableError, file_error, reason
from reco_ray.faiss_library import load_faiss, share_centroids
from reco_ray.files import artifacts, storage
from reco_ray.files.caches import cache_directory

_CACHED_GROUPS = 32


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard.

    Attributes:
        vectors: URI of the FAISS file.
        images: URI of the table of images.
        start: Row of the first image.
        rows: Number of images.
        bytes: Size of the FAISS file; None if not recorded.
    """

    vectors: str
    images: str
    start: int
    rows: int
    bytes: int | None


def shard_files(uri: str, manifest: artifacts.Manifest[IndexContent]) -> list[ShardFiles]:
    """The shards of an index artifact; artifacts of version 0.1 have a single one that is not listed."""
    if manifest.content.shards is None:
        vectors, images = storage.join(uri, "vectors.faiss"), storage.join(uri, "images.parquet")
        return [ShardFiles(vectors, images, 0, manifest.counts["images"], None)]
    return [
        ShardFiles(
            storage.join(uri, "shards", f"{shard.name}.faiss"),
            storage.join(uri, "images", f"{shard.name}.parquet"),
            shard.start,
            shard.images,
            shard.bytes,
        )
        for shard in manifest.content.shards
    ]


def open_trained(uri: str, version: str) -> Any:
    """Opens the trained, empty index, whose centroids all shards share."""
    return load_faiss().read_index(_local(storage.join(uri, "trained", "empty.faiss"), version))


def open_vectors(files: ShardFiles, trained: Any, version: str) -> Any:
    """Opens a shard's FAISS file, memory-mapped.

    Args:
        files: The shard.
        trained: Result of `open_trained`; None for a flat index.
        version: Version of the artifact, part of the key of a downloaded file.

    Raises:
        OSError: If the file is missing or has another size or number of vectors than recorded.
        RuntimeError: If it is not a FAISS file.
    """
    faiss = load_faiss()
    path = _local(files.vectors, version)
    if files.bytes is not None and os.path.getsize(path) != files.bytes:
        # Accessing the missing part of a truncated memory-mapped file would kill the process.
        raise OSError(f"{files.vectors} has {os.path.getsize(path):,} bytes instead of {files.bytes:,}")
    index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC if trained is None else faiss.IO_FLAG_MMAP)
    if index.ntotal != files.rows:
        raise OSError(f"{files.vectors} has {index.ntotal:,} vectors instead of {files.rows:,}")
    if trained is not None:
        share_centroids(index, trained)
    return index


def _local(uri: str, version: str) -> str:
    """The local path of a file, downloading it if necessary."""
    if (path := storage.local_path(uri)) is not None:
        return path
    root = cache_directory()
    target = os.path.join(root, "index", storage.digest(uri, version), uri.rpartition("/")[2])
    if not os.path.exists(target):
        try:
            storage.download(uri, target)
        except OSError as error:
            raise file_error(
                f"{uri}: cannot be downloaded to {root} (RECO_CACHE): {reason(error)}", error
            ) from error
    return target


class ImageTable:
    """The images of an index over all shards; row groups are read on demand."""

    def __init__(self, shards: list[ShardFiles]) -> None:
        self._shards = shards
        self._starts = np.array([shard.start for shard in shards])
        self._files: dict[int, tuple[storage.ParquetReader, np.ndarray]] = {}
        self._group = lru_cache(_CACHED_GROUPS)(self._read_group)

    def take(self, rows: np.ndarray) -> pa.Table:
        """Looks up images.

        Args:
            rows: int64 (n,), as returned by `CorpusIndex.search`.

        Returns:
            `image_id`, `uri`, `width` and `height` of these rows, in the same order.
        """
        rows = np.asarray(rows, np.int64).reshape(-1)
        places = [self._place(int(row)) for row in rows]
        groups = list(dict.fromkeys((shard, group) for shard, group, _ in places))
        tables = {key: self._group(*key) for key in groups}
        pieces, offset = {}, 0
        for key, table in tables.items():
            pieces[key] = offset
            offset += table.num_rows
        chosen = pa.array([pieces[shard, group] + inside for shard, group, inside in places], pa.int64())
        if not groups:
            return self._group(0, 0).slice(0, 0)
        return pa.concat_tables(tables.values()).take(chosen)

    def scan_uris(self) -> Iterator[tuple[int, pa.Array]]:
        """Yields all URIs in batches, each with the row of its first."""
        for number, shard in enumerate(self._shards):
            start = shard.start
            for table in self._open(number)[0].row_groups(["uri"]):
                yield start, table["uri"].combine_chunks()
                start += table.num_rows

    def first_by_id(self, count: int) -> pa.Table:
        """The images with the smallest ids; scans the ids.

        Ids are hashes of the images' bytes, so this is a random sample, and the same whatever the order of the rows.

        Args:
            count: maximum number of images.

        Returns:
            `image_id` and `uri`, in the order of the ids.
        """
        found: list[pa.Table] = []
        for number in range(len(self._shards)):
            for table in self._open(number)[0].row_groups(["image_id", "uri"]):
                found.append(_smallest(table, count))
        return _smallest(pa.concat_tables(found), count).sort_by("image_id")

    def uri_of(self, image_id: str) -> str | None:
        """The URI of an image, None if it is not in the index; scans the ids."""
        for number in range(len(self._shards)):
            for table in self._open(number)[0].row_groups(["image_id", "uri"]):
                row = pc.index(table["image_id"], image_id).as_py()
                if row >= 0:
                    return table["uri"][row].as_py()
        return None

    def find(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Looks up images by URI or id; scans both.

        Returns:
            `image_id`, `uri`, `width` and `height` of each image, by the name it was looked up with; those that are
            not in the index are left out.
        """
        wanted = pa.array(list(names), pa.string())
        found: dict[str, dict[str, Any]] = {}
        for number in range(len(self._shards) if len(wanted) else 0):
            for table in self._open(number)[0].row_groups(["image_id", "uri", "width", "height"]):
                for column in ("image_id", "uri"):
                    for row in table.filter(pc.is_in(table[column], value_set=wanted)).to_pylist():
                        found[row[column]] = row
        return found

    def _place(self, row: int) -> tuple[int, int, int]:
        """Row of the index -> shard, row group in the shard, row in the group."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        ends = self._open(shard)[1]
        inside = row - self._shards[shard].start
        group = int(np.searchsorted(ends, inside, side="right"))
        return shard, group, inside - (int(ends[group - 1]) if group else 0)

    def _open(self, shard: int) -> tuple[storage.ParquetReader, np.ndarray]:
        if shard not in self._files:
            try:
                file = storage.ParquetReader(self._shards[shard].images)
            except (OSError, pa.ArrowInvalid) as error:
                raise UnreadableError(
                    f"{self._shards[shard].images}: damaged ({reason(error)}): delete the index and build it again"
                ) from error
            sizes = [
                file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)
            ]
            self._files[shard] = file, np.cumsum(sizes)
        return self._files[shard]

    def _read_group(self, shard: int, group: int) -> pa.Table:
        return self._open(shard)[0].read_row_group(group)


def _smallest(table: pa.Table, count: int) -> pa.Table:
    rows = pc.select_k_unstable(table, k=count, sort_keys=[("image_id", "ascending")])
    return table.take(rows)
