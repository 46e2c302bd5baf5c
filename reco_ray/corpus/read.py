"""Which images there are, and their bytes: folders, globs, list files, Parquet with bytes or URIs."""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from reco_ray import storage
from reco_ray.errors import RecoError, reason

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
LIST_SUFFIXES = (".txt", ".lst")
URI_COLUMNS = ("uri", "url", "path", "file_name")
BYTES_COLUMNS = ("bytes", "image", "jpg", "png", "content")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Listing:
    """The images of a source.

    table: `uri`, `size` (bytes, -1 where the source does not say), ordered by size, then URI; the rows of
    tables and list files in their own order. Files of the same content have the same size, so they end up
    side by side, nearly always in the same shard, where they cost one forward pass. root: what URIs can be
    shown relative to. fingerprint: changes when a file comes, goes or is resized.
    """

    table: pa.Table
    root: str
    fingerprint: str


def list_images(uri: str) -> Listing:
    """Lists a folder (recursively), a glob, a list file (one URI a line), Parquet files, or one image.

    In a glob, `*` and `?` stay inside one folder and `**/` spans any number; it may match Parquet files.

    Raises:
        RecoError: nothing is there, or it holds no images.
    """
    uri = storage.absolute(uri)
    root = uri
    magic = re.search(r"[*?[]", uri)
    if magic and not storage.exists(uri):  # "holiday [2024]" may be a folder's name
        root = uri[: magic.start()].rpartition("/")[0]
        pattern = _glob_pattern(uri)
        rows = [row for file in _walk(root) if pattern.fullmatch(file[0]) for row in _images_of(file)]
    elif uri.endswith(LIST_SUFFIXES):
        root, rows = uri.rpartition("/")[0], list(_read_list(uri))
    elif uri.endswith(".parquet"):
        rows = list(_read_parquet(uri))
    elif uri.lower().endswith(IMAGE_SUFFIXES):
        root, rows = uri.rpartition("/")[0], list(_walk(uri))
    else:
        files = list(_walk(uri))
        rows = [row for row in files if row[0].lower().endswith(IMAGE_SUFFIXES)]
        if not rows:
            rows = [row for file in files if file[0].endswith(".parquet") for row in _images_of(file)]
    if not rows:
        raise RecoError(f"{uri}: no images here (looked for {' '.join(IMAGE_SUFFIXES)} and .parquet)")
    rows.sort(key=lambda row: row[1])
    digest = hashlib.sha256()
    for name, size in rows:
        digest.update(f"{name}\t{size}\n".encode())
    names, sizes = zip(*rows, strict=True)
    table = pa.table({"uri": pa.array(names, pa.string()), "size": pa.array(sizes, pa.int64())})
    return Listing(table, root, digest.hexdigest()[:16])


def read_image_bytes(uri: str) -> bytes:
    """The encoded image behind a URI of a listing; `table.parquet#17` is row 17 of that table.

    Raises:
        OSError: it cannot be read.
    """
    file, hash_sign, row = uri.rpartition("#")
    try:
        if hash_sign and file.endswith(".parquet"):
            return _parquet_row(file, int(row))
        return storage.read_bytes(uri)
    except (RecoError, ValueError) as error:  # ValueError: a damaged row group, or no row number
        raise OSError(reason(error)) from error


def prefetched(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 8, ahead: int = 16
) -> Iterator[Result]:
    """`map` over threads, in order, with at most `ahead` results waiting, so that memory stays bounded.

    For reading files while something else computes; exceptions surface at their item.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _walk(uri: str) -> Iterator[tuple[str, int]]:
    """(uri, size) of every file under a folder, in the order of their names, or of the one file."""
    filesystem, path = storage.resolve(uri)
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise RecoError(f"{uri}: no such file or folder")
        infos = [info]
        if info.type == pafs.FileType.Directory:
            infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        infos.sort(key=lambda info: info.path)
    except OSError as error:
        raise RecoError(f"{uri}: cannot be listed: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise RecoError(f"{uri}: the file name {error.object!r} is not UTF-8: rename it") from error
    prefix = uri[: len(uri) - len(path)] if uri.endswith(path) else uri.partition("://")[0] + "://"
    # pyarrow reads percent escapes in URIs, so a percent sign in a name must be one.
    escapes = "://" in uri and not isinstance(filesystem, pafs.PyFileSystem)
    for entry in infos:
        if entry.type == pafs.FileType.File:
            yield prefix + (entry.path.replace("%", "%25") if escapes else entry.path), entry.size


def _images_of(file: tuple[str, int]) -> Iterable[tuple[str, int]]:
    """The rows of a Parquet file; any other file as it is."""
    return _read_parquet(file[0]) if file[0].endswith(".parquet") else [file]


def _glob_pattern(glob: str) -> re.Pattern[str]:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", glob)
    plain, special = tokens[::2], tokens[1::2]
    translated = [wild.get(token) or token.replace("[!", "[^") for token in special] + [""]
    return re.compile("".join(re.escape(p) + t for p, t in zip(plain, translated, strict=True)))


def _read_list(uri: str) -> Iterator[tuple[str, int]]:
    folder = uri.rpartition("/")[0]
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecoError(f"{uri}: the list of images cannot be read: {reason(error)}") from error
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            yield (line if "://" in line or line.startswith("/") else storage.join(folder, line)), -1


def _read_parquet(uri: str) -> Iterator[tuple[str, int]]:
    schema = _open_parquet(uri).schema_arrow
    column = next((name for name in URI_COLUMNS if name in schema.names), None)
    if column and _is_text(schema.field(column).type) and not _bytes_column(schema):
        folder = uri.rpartition("/")[0]
        for value in storage.read_table(uri, [column])[column].to_pylist():
            if value:
                yield (value if "://" in value or value.startswith("/") else storage.join(folder, value)), -1
        return
    if not _bytes_column(schema):
        raise RecoError(
            f"{uri}: no column of images: expected a string column named {' / '.join(URI_COLUMNS)} "
            f"or a binary one named {' / '.join(BYTES_COLUMNS)}; found {', '.join(schema.names)}"
        )
    for row in range(_open_parquet(uri).metadata.num_rows):
        yield f"{uri}#{row}", -1


@lru_cache(maxsize=8)
def _open_parquet(uri: str) -> pq.ParquetFile:
    filesystem, path = storage.resolve(uri)
    try:
        return pq.ParquetFile(filesystem.open_input_file(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise RecoError(f"{uri}: not a readable Parquet file: {reason(error)}") from error


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _bytes_column(schema: pa.Schema) -> str | None:
    """The first column of encoded images: binary, or the {bytes, path} struct of Hugging Face datasets."""
    for name in BYTES_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind):
                return name
    return None


_parquet_lock = Lock()  # one thread reads a row group, the others find it in the cache


def _parquet_row(uri: str, row: int) -> bytes:
    metadata = _open_parquet(uri).metadata
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < rows:
            with _parquet_lock:
                values = _parquet_group(uri, group)
            value: Any = values[row].as_py()
            return (value.get("bytes") if isinstance(value, dict) else value) or b""
        row -= rows
    raise OSError("row beyond the end of the table")


@lru_cache(maxsize=2)
def _parquet_group(uri: str, group: int) -> pa.ChunkedArray:
    file = _open_parquet(uri)
    column = _bytes_column(file.schema_arrow)
    assert column is not None, "listed as a table of images"
    return file.read_row_group(group, columns=[column]).column(0)
