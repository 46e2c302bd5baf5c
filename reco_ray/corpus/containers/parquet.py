"""Images inside Parquet: a column of encoded images, read by row group; or a column that says where they are.

The address of a row is `table.parquet#17`, or `table.parquet#17@photo` where the user named the column.
"""

import re
from collections.abc import Iterator
from functools import lru_cache, partial
from threading import Lock
from typing import Any

import pyarrow as pa

from reco_ray.corpus import web
from reco_ray.corpus.columns import Column, NoImageColumn, find_column
from reco_ray.corpus.containers import ReadOptions
from reco_ray.errors import RecoError, file_error, reason
from reco_ray.files import storage
from reco_ray.files.read_ahead import prefetched
from reco_ray.files.retries import StoreUnavailable

SUFFIXES = (".parquet",)
KIND = "table"
_ADDRESS = re.compile(r"(?P<table>.*?\.parquet)#(?P<row>\d+)(@(?P<column>.+))?", re.IGNORECASE | re.DOTALL)
_NULL = "null: this row of the table holds no image"


def count(uri: str, options: ReadOptions) -> int | None:
    """How many images a table holds, None if it names images elsewhere.

    Raises:
        NoImageColumn: no column of images.
        RecoError: not readable.
    """
    file = _open(uri)
    column = _column(file, uri, options.image_column)
    return None if column.holds == "uri" or _only_paths(file, column) else file.metadata.num_rows


def addresses(uri: str, options: ReadOptions) -> list[str]:
    """The addresses of all rows of a table that holds images; raises as `count`."""
    return [_address(uri, row, options.image_column) for row in range(count(uri, options) or 0)]


def read_uris(uri: str, options: ReadOptions) -> Iterator[str]:
    """What a table that names images elsewhere says; of a row that names none its own address."""
    file = _open(uri)
    column = _column(file, uri, options.image_column)
    row = 0
    for group in range(file.metadata.num_row_groups):
        for value in file.read_row_group(group, [column.name])[column.name]:
            named = _place(value.as_py(), column)
            yield storage.beside(uri, named or _address(uri, row, options.image_column))
            row += 1


def members(uri: str, options: ReadOptions) -> Iterator[tuple[str, bytes | OSError]]:
    """(address, the image's bytes or why there are none) of every row, in order; one row group is in memory at a time.

    A damaged row group costs its rows only. The limit is for images that lie elsewhere.

    Raises:
        OSError: the file itself cannot be read.
        StoreUnavailable: it could not be read on.
    """
    try:
        file = _open(uri)
        column = _column(file, uri, options.image_column)
    except StoreUnavailable:
        raise
    except RecoError as error:
        raise OSError(str(error).removeprefix(f"{uri}: ")) from error
    row = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        addresses = [_address(uri, row + number, options.image_column) for number in range(count)]
        try:
            values = file.read_row_group(group, [column.name])[column.name]
        except (OSError, ValueError) as error:  # ValueError: pyarrow's for damaged pages
            yield from ((address, OSError(reason(error))) for address in addresses)
        else:
            read = partial(_image_or_error, uri, column, options.limit)
            # Only what lies elsewhere takes time.
            images = prefetched(read, values) if column.holds != "bytes" else map(read, values)
            yield from zip(addresses, images, strict=True)
        row += count


def owns(address: str) -> bool:
    """Whether this is the address of a row."""
    return _ADDRESS.fullmatch(address) is not None


def read(address: str, limit: int) -> bytes:
    """The image at an address of a row.

    Args:
        limit: a larger one that lies elsewhere is refused, bytes.

    Raises:
        OSError: there is no such row, or it cannot be read.
        StoreUnavailable: its store does not answer.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise OSError("no address of a row: expected table.parquet#17")
    table, row = parts["table"], int(parts["row"])
    try:
        file = _kept_open(table)
        column = _column(file, table, parts["column"])
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                with _lock:
                    values = _group(table, group, column.name)
                return _image(table, column, limit, values[row])
            row -= rows
    except StoreUnavailable:
        raise
    except (RecoError, ValueError) as error:
        raise OSError(reason(error)) from error
    raise OSError("row beyond the end of the table")


def _open(uri: str) -> storage.ParquetReader:
    try:
        return storage.ParquetReader(uri)
    except (OSError, pa.ArrowInvalid) as error:
        raise file_error(f"{uri}: not a readable Parquet file: {reason(error)}", error) from error


def _column(file: storage.ParquetReader, uri: str, named: str | None) -> Column:
    try:
        return find_column(file.schema, named)
    except NoImageColumn as error:
        raise NoImageColumn(f"{uri}: {error}") from error


_kept_open = lru_cache(maxsize=8)(_open)
_lock = Lock()  # one thread reads a row group, the others find it in the cache


@lru_cache(maxsize=2)
def _group(uri: str, group: int, column: str) -> pa.ChunkedArray:
    return _kept_open(uri).read_row_group(group, [column])[column]


def _address(uri: str, row: int, image_column: str | None) -> str:
    return f"{uri}#{row}" + ("" if image_column is None else f"@{image_column}")


def _only_paths(file: storage.ParquetReader, column: Column) -> bool:
    """Whether a column of {bytes, path} holds no bytes at all, as far as the file's statistics tell."""
    if column.holds != "struct":
        return False
    metadata = file.metadata
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            counts = chunk.statistics
            if chunk.path_in_schema == f"{column.name}.bytes" and (
                counts is None or not counts.has_null_count or counts.null_count < group.num_rows
            ):
                return False
    return metadata.num_rows > 0


def _place(value: Any, column: Column) -> str | None:
    """Where a row's value says that the image is."""
    if column.holds == "struct" and value is not None:
        value = value.get("path")
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value.strip() or None if value else None


def _image(uri: str, column: Column, limit: int, value: pa.Scalar) -> bytes:
    found = value.as_py()
    inside = found.get("bytes") if column.holds == "struct" and found is not None else found
    if column.holds != "uri" and inside is not None:
        return inside
    place = _place(found, column) if column.holds != "bytes" else None
    if place is None:
        raise OSError(_NULL)
    place = storage.beside(uri, place)
    return web.fetch(place, limit) if web.is_web(place) else storage.read_bytes(place, limit)


def _image_or_error(uri: str, column: Column, limit: int, value: pa.Scalar) -> bytes | OSError:
    try:
        return _image(uri, column, limit, value)
    except StoreUnavailable:
        raise
    except OSError as error:
        return error
    except RecoError as error:  # a path that no store knows
        return OSError(reason(error))
