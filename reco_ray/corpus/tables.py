"""Images inside Parquet: a column of encoded bytes, read by row group; or a column that names images elsewhere."""

from collections.abc import Iterator
from functools import lru_cache
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reco_ray import storage, stores
from reco_ray.errors import RecoError, reason
from reco_ray.retries import retried

URI_COLUMNS = ("uri", "url", "path", "file_name")
BYTES_COLUMNS = ("bytes", "image", "jpg", "png", "content")


def count_rows(uri: str) -> int | None:
    """How many images a table holds, None if it names images elsewhere.

    Raises:
        RecoError: not readable, or no column of images.
    """
    file = _open(uri)
    schema = file.schema_arrow
    if _bytes_column(schema):
        return file.metadata.num_rows
    if _uri_column(schema):
        return None
    raise RecoError(
        f"{uri}: no column of images: expected a string column named {' / '.join(URI_COLUMNS)} "
        f"or a binary one named {' / '.join(BYTES_COLUMNS)}; found {', '.join(schema.names)}"
    )


def read_uris(uri: str) -> Iterator[str]:
    """What a table's column of URIs names, without nulls."""
    file = _open(uri)
    column = _uri_column(file.schema_arrow)
    for group in range(file.metadata.num_row_groups):
        yield from filter(None, _read_group(file, group, column, uri).to_pylist())


def members(uri: str) -> Iterator[tuple[str, bytes | OSError]]:
    """(`table.parquet#17`, the image's bytes) of every row, in order; one row group is in memory at a time.

    A damaged row group costs its rows only. Raises OSError if the file itself cannot be read.
    """
    try:
        file = _open(uri)
        column = _bytes_column(file.schema_arrow)
        if column is None:
            raise RecoError("no column of images any more")
    except RecoError as error:
        raise OSError(str(error).removeprefix(f"{uri}: ")) from error
    row = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        try:
            values = _read_group(file, group, column, uri)
        except (OSError, ValueError) as error:  # ValueError: pyarrow's for damaged pages
            yield from ((f"{uri}#{row + number}", OSError(reason(error))) for number in range(count))
        else:
            yield from ((f"{uri}#{row + number}", _bytes(value)) for number, value in enumerate(values))
        row += count


def member(uri: str, row: int) -> bytes:
    """The image in one row.

    Raises:
        OSError: there is no such row, or it cannot be read.
    """
    try:
        metadata = _kept_open(uri).metadata
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if row < rows:
                with _lock:
                    values = _group(uri, group)
                return _bytes(values[row])
            row -= rows
    except (RecoError, ValueError) as error:
        raise OSError(reason(error)) from error
    raise OSError("row beyond the end of the table")


def _open(uri: str) -> pq.ParquetFile:
    filesystem, path = storage.resolve(uri)
    try:
        return retried(lambda: pq.ParquetFile(stores.opened(filesystem, path)), uri)
    except (OSError, pa.ArrowInvalid) as error:
        raise RecoError(f"{uri}: not a readable Parquet file: {reason(error)}") from error


_kept_open = lru_cache(maxsize=8)(_open)
_lock = Lock()  # one thread reads a row group, the others find it in the cache


@lru_cache(maxsize=2)
def _group(uri: str, group: int) -> pa.ChunkedArray:
    file = _kept_open(uri)
    column = _bytes_column(file.schema_arrow)
    if column is None:
        raise OSError("no column of images")
    return _read_group(file, group, column, uri)


def _read_group(file: pq.ParquetFile, group: int, column: str | None, uri: str) -> pa.ChunkedArray:
    return retried(lambda: file.read_row_group(group, columns=[column]), uri).column(0)


def _bytes(value: pa.Scalar) -> bytes:
    found: Any = value.as_py()
    return (found.get("bytes") if isinstance(found, dict) else found) or b""


def _uri_column(schema: pa.Schema) -> str | None:
    column = next((name for name in URI_COLUMNS if name in schema.names), None)
    kind = schema.field(column).type if column else None
    return (
        column if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)) else None
    )


def _bytes_column(schema: pa.Schema) -> str | None:
    """The first column of encoded images: binary, or the {bytes, path} struct of Hugging Face datasets."""
    for name in BYTES_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind):
                return name
    return None
