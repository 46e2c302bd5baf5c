"""The files of an index, opened without reading them whole: shards are memory-mapped, image rows looked up in groups.

A shard in an object store is downloaded once to $RECO_CACHE (default ~/.cache/reco-ray) and mapped from there: a search
touches few of its lists, and the next command finds it there. The cache may be deleted at any time.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from reco_ray import storage, stores
from reco_ray.corpus.index.faiss_library import load_faiss, share_centroids
from reco_ray.errors import RecoError, reason

_AT_ONCE = 65_536  # rows of a scan
_GROUPS_KEPT = 32


@dataclass(frozen=True)
class ShardFiles:
    """Where one shard lies. bytes: the FAISS file's, None if nobody wrote it down."""

    vectors: str
    images: str
    start: int
    rows: int
    bytes: int | None


def shard_files(uri: str, manifest: storage.Manifest) -> list[ShardFiles]:
    """The shards of an index artifact; one of version 0.1 has a single one without a list."""
    if "shards" not in manifest.content:
        vectors, images = storage.join(uri, "vectors.faiss"), storage.join(uri, "images.parquet")
        return [ShardFiles(vectors, images, 0, manifest.counts["images"], None)]
    return [
        ShardFiles(
            storage.join(uri, "shards", f"{shard['name']}.faiss"),
            storage.join(uri, "images", f"{shard['name']}.parquet"),
            shard["start"],
            shard["images"],
            shard["bytes"],
        )
        for shard in manifest.content["shards"]
    ]


def open_trained(uri: str, version: str) -> Any:
    """Opens the trained, empty index, whose centroids all shards use."""
    return load_faiss().read_index(_local(storage.join(uri, "trained", "empty.faiss"), version))


def open_vectors(files: ShardFiles, trained: Any, version: str) -> Any:
    """Opens a shard's FAISS file, memory-mapped.

    Args:
        trained: as `open_trained` gives it; None for a flat index.
        version: of the artifact; tells apart what lay at the same URI before.

    Raises:
        OSError, RuntimeError: missing, cut short, or no FAISS file.
    """
    faiss = load_faiss()
    path = _local(files.vectors, version)
    if files.bytes is not None and os.path.getsize(path) != files.bytes:
        # Mapped, a file that ends too early would end the process when the missing part is touched.
        raise OSError(f"{files.vectors} has {os.path.getsize(path):,} bytes instead of {files.bytes:,}")
    index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC if trained is None else faiss.IO_FLAG_MMAP)
    if index.ntotal != files.rows:
        raise OSError(f"{files.vectors} has {index.ntotal:,} vectors instead of {files.rows:,}")
    if trained is not None:
        share_centroids(index, trained)
    return index


def _local(uri: str, version: str) -> str:
    """The path of the file on this machine, after downloading it if it is elsewhere."""
    filesystem, path = storage.resolve(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return path
    root = os.environ.get("RECO_CACHE") or os.path.expanduser("~/.cache/reco-ray")
    target = os.path.join(root, "index", storage.digest(uri, version), os.path.basename(path))
    if os.path.exists(target):
        return target
    temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with filesystem.open_input_stream(path) as source, open(temporary, "wb") as sink:
            shutil.copyfileobj(source, sink, 8 << 20)
        os.replace(temporary, target)  # several processes may download it: the last one wins
    except OSError as error:
        raise RecoError(f"{uri}: cannot be downloaded to {root} (RECO_CACHE): {reason(error)}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return target


class ImageTable:
    """What the rows of the index are, over all shards, read in row groups when they are asked for."""

    def __init__(self, shards: list[ShardFiles]) -> None:
        self._shards = shards
        self._starts = np.array([shard.start for shard in shards])
        self._files: dict[int, tuple[pq.ParquetFile, np.ndarray]] = {}
        self._group = lru_cache(_GROUPS_KEPT)(self._read_group)

    def take(self, rows: np.ndarray) -> pa.Table:
        """The rows of the table `image_id`, `uri`, `width`, `height`, in the order given.

        Args:
            rows: int64 (n,), as `CorpusIndex.search` gives them.
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
        """All URIs in pieces: the row of the first, and the piece."""
        for number, shard in enumerate(self._shards):
            start = shard.start
            for batch in self._open(number)[0].iter_batches(_AT_ONCE, columns=["uri"]):
                yield start, batch.column(0)
                start += batch.num_rows

    def uri_of(self, image_id: str) -> str | None:
        """The URI of an image, None if it is not here; reads ids until it is found."""
        for number in range(len(self._shards)):
            file = self._open(number)[0]
            for batch in file.iter_batches(_AT_ONCE, columns=["image_id", "uri"]):
                row = pc.index(batch.column(0), image_id).as_py()
                if row >= 0:
                    return batch.column(1)[row].as_py()
        return None

    def _place(self, row: int) -> tuple[int, int, int]:
        """Row of the index -> shard, row group in it, row in that."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        ends = self._open(shard)[1]
        inside = row - self._shards[shard].start
        group = int(np.searchsorted(ends, inside, side="right"))
        return shard, group, inside - (int(ends[group - 1]) if group else 0)

    def _open(self, shard: int) -> tuple[pq.ParquetFile, np.ndarray]:
        if shard not in self._files:
            filesystem, path = storage.resolve(self._shards[shard].images)
            try:
                file = pq.ParquetFile(stores.opened(filesystem, path))
            except (OSError, pa.ArrowInvalid) as error:
                raise RecoError(
                    f"{self._shards[shard].images}: damaged ({reason(error)}): delete the index and build it again"
                ) from error
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            self._files[shard] = file, np.cumsum(sizes)
        return self._files[shard]

    def _read_group(self, shard: int, group: int) -> pa.Table:
        return self._open(shard)[0].read_row_group(group)
