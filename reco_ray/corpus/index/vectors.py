"""Embeddings read file by file: however large the corpus, one file's vectors are in memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reco_ray import storage
from reco_ray.ahead import prefetched
from reco_ray.corpus.plan import embedding_files
from reco_ray.errors import RecoError, reason
from reco_ray.retries import retried

_READERS = 16
_FOLDER = "embeddings"
IMAGE_COLUMNS = ["image_id", "uri", "width", "height"]


@dataclass(frozen=True)
class Part:
    """A file of an embeddings artifact and how many rows it has."""

    name: str
    rows: int


def list_parts(embeddings: str, manifest: storage.Manifest) -> list[Part]:
    """The files that the manifest stands for, in the order in which rows are counted; reads all their footers."""
    files = embedding_files(embeddings, manifest)

    def count(uri: str) -> int:
        filesystem, path = storage.resolve(uri)
        with _explained(uri):
            return retried(lambda: pq.read_metadata(path, filesystem=filesystem), uri).num_rows

    with ThreadPoolExecutor(_READERS) as pool:
        rows = pool.map(count, files)
        return [Part(file.rpartition("/")[2], number) for file, number in zip(files, rows, strict=True)]


def read_part(embeddings: str, part: Part, columns: list[str] | None = None) -> pa.Table:
    """The rows of one file.

    Raises:
        RecoError: it cannot be read, or has not as many rows as before.
    """
    uri = storage.join(embeddings, _FOLDER, part.name)
    with _explained(uri):
        table = storage.read_table(uri, columns)
    if table.num_rows != part.rows:
        raise RecoError(f"{uri}: has {table.num_rows:,} rows instead of {part.rows:,}: it changed meanwhile")
    return table


def vectors_of(table: pa.Table) -> np.ndarray:
    """The column `embedding` as float32 (rows, d)."""
    column = table["embedding"]
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, column.type.list_size).astype(np.float32)


def sample_vectors(embeddings: str, parts: list[Part], count: int, seed: int) -> np.ndarray:
    """About `count` vectors, float32, from up to 1,024 files drawn by chance (more only if that is too few).

    Whole corpora are ordered by file size, so a sample needs many files; reading all of them would take too long.
    """
    random = np.random.default_rng(seed)
    order = [parts[number] for number in random.permutation(len(parts)) if parts[number].rows]
    mean = sum(part.rows for part in order) / len(order)
    chosen = order[: max(1024, int(np.ceil(count / mean)) + 1)]
    share = min(1.0, count / sum(part.rows for part in chosen))
    taken = []
    for part, table in _ahead(embeddings, chosen):
        rows = random.permutation(part.rows)[: max(1, round(share * part.rows))]
        taken.append(vectors_of(table)[np.sort(rows)])
    return np.concatenate(taken)


def rows_at(embeddings: str, parts: list[Part], rows: np.ndarray) -> np.ndarray:
    """The vectors of given rows of the corpus, rising int64 (n,) -> float32 (n, d)."""
    starts = np.cumsum([0, *(part.rows for part in parts)])
    inside = np.searchsorted(starts, rows, side="right") - 1
    needed = np.unique(inside)
    found = [
        vectors_of(table)[rows[inside == number] - starts[number]]
        for number, (_, table) in zip(needed, _ahead(embeddings, [parts[n] for n in needed]), strict=True)
    ]
    return np.concatenate(found)


def _ahead(embeddings: str, parts: list[Part]) -> Iterator[tuple[Part, pa.Table]]:
    """The embeddings of files in order, a few read ahead: object stores answer late, not slowly."""
    read = partial(read_part, embeddings, columns=["embedding"])
    yield from zip(parts, prefetched(read, parts), strict=True)


class _explained(storage._explained):
    """Also turns Parquet's own errors into one line."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, pa.ArrowInvalid):
            raise RecoError(f"{self.uri}: damaged ({reason(error)}): embed the corpus again") from error
        super().__exit__(kind, error, trace)
