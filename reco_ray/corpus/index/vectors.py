"""Reads embeddings file by file, so that memory does not grow with the corpus."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus.generations import embedding_files
from reco_ray.errors import UnreadableError
from reco_ray.files import storage
from reco_ray.files.read_ahead import prefetched

_READERS = 16
_REMEDY = "delete its artifact and embed the corpus again"
_FOLDER = "embeddings"
IMAGE_COLUMNS = ["image_id", "uri", "width", "height"]


@dataclass(frozen=True)
class Part:
    """A file of an embeddings artifact and its number of rows."""

    name: str
    rows: int


def list_parts(embeddings: str, content: EmbeddingsContent) -> list[Part]:
    """The files of an embeddings artifact in row order; reads all their footers."""
    files = embedding_files(embeddings, content)
    count = partial(storage.count_rows, remedy=_REMEDY)
    with ThreadPoolExecutor(_READERS) as pool:
        rows = pool.map(count, files)
        return [Part(file.rpartition("/")[2], number) for file, number in zip(files, rows, strict=True)]


def read_part(embeddings: str, part: Part, columns: list[str] | None = None) -> pa.Table:
    """Reads one file.

    Raises:
        UnreadableError: If it cannot be read or its number of rows has changed.
    """
    uri = storage.join(embeddings, _FOLDER, part.name)
    with storage.explained_errors(uri, remedy=_REMEDY):
        table = storage.read_table(uri, columns)
    if table.num_rows != part.rows:
        raise UnreadableError(
            f"{uri}: has {table.num_rows:,} rows instead of {part.rows:,}: it changed meanwhile"
        )
    return table


def vectors_of(table: pa.Table) -> np.ndarray:
    """The column `embedding` as float32 (n, d)."""
    column = table["embedding"]
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, column.type.list_size).astype(np.float32)


def sample_vectors(embeddings: str, parts: list[Part], count: int, seed: int) -> np.ndarray:
    """Draws about `count` vectors from up to 1,024 random files, or more if these hold too few.

    Rows are ordered by file size, so a sample must come from many files; reading all files would take too long.

    Returns:
        float32 (about count, d).
    """
    random = np.random.default_rng(seed)
    order = [parts[number] for number in random.permutation(len(parts)) if parts[number].rows]
    mean = sum(part.rows for part in order) / len(order)
    chosen = order[: max(1024, int(np.ceil(count / mean)) + 1)]
    share = min(1.0, count / sum(part.rows for part in chosen))
    taken = []
    for part, table in _prefetched_tables(embeddings, chosen):
        rows = random.permutation(part.rows)[: max(1, round(share * part.rows))]
        taken.append(vectors_of(table)[np.sort(rows)])
    return np.concatenate(taken)


def rows_at(embeddings: str, parts: list[Part], rows: np.ndarray) -> np.ndarray:
    """The vectors of given rows of the corpus: int64 (n,), ascending -> float32 (n, d)."""
    starts = np.cumsum([0, *(part.rows for part in parts)])
    inside = np.searchsorted(starts, rows, side="right") - 1
    needed = np.unique(inside)
    found = [
        vectors_of(table)[rows[inside == number] - starts[number]]
        for number, (_, table) in zip(
            needed, _prefetched_tables(embeddings, [parts[n] for n in needed]), strict=True
        )
    ]
    return np.concatenate(found)


def _prefetched_tables(embeddings: str, parts: list[Part]) -> Iterator[tuple[Part, pa.Table]]:
    """Yields the embeddings of files in order, prefetching a few to hide the latency of object stores."""
    read = partial(read_part, embeddings, columns=["embedding"])
    yield from zip(parts, prefetched(read, parts), strict=True)
