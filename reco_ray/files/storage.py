"""Files behind URIs: local paths and objects in stores. Requests that fail temporarily are retried."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from reco_ray.errors import RecoError, UnreadableError, file_error, reason
from reco_ray.files.filesystems import opened, read_whole, resolve
from reco_ray.files.recorded_writes import record_write
from reco_ray.files.retries import retried

# --- URIs ---------------------------------------------------------------------------------------------------


def join(uri: str, *parts: str) -> str:
    """Appends path segments to a URI or local path."""
    return "/".join([uri.rstrip("/"), *parts])


def beside(uri: str, name: str) -> str:
    """What a file at `uri` calls `name`: a URI or an absolute path, or else a path beside the file."""
    return name if "://" in name or name.startswith("/") else join(uri.rpartition("/")[0], name)


def absolute(uri: str) -> str:
    """Makes local paths absolute, as workers run in other directories; URIs are unchanged."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def exists(uri: str) -> bool:
    """Whether a file or a directory exists."""
    filesystem, path = resolve(uri)
    with explained_errors(uri):
        return retried(lambda: filesystem.get_file_info(path), uri).type != pafs.FileType.NotFound


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """Reads a whole file.

    Args:
        uri: of the file.
        limit: maximum size, bytes.

    Raises:
        FileNotFoundError, OSError: it is missing, larger than the limit, or cannot be read.
        StoreUnavailable: as `retried`.
    """
    filesystem, path = resolve(uri)
    return retried(lambda: read_whole(filesystem, path, limit), uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file atomically: readers see either the old or the new content.

    Raises:
        RecoError: it cannot be written.
    """
    filesystem, path = resolve_for_writing(uri)
    with explained_errors(uri, "cannot be written"):
        if isinstance(filesystem, pafs.LocalFileSystem):
            with local_file(path) as file:
                file.write(data)
        else:
            retried(lambda: _upload(filesystem, path, data), uri)
    record_write(uri, data)


def resolve_for_writing(uri: str) -> tuple[pafs.FileSystem, str]:
    """As `resolve`; raises RecoError for places that are only read."""
    # Each file would be a commit, of which the hub allows a few per minute.
    if uri.startswith("hf://"):
        raise RecoError(f"{uri}: cannot be written: hf:// is only read: choose another --out")
    return resolve(uri)


@contextmanager
def local_file(path: str) -> Iterator[BinaryIO]:
    """Opens a local file for writing that appears whole at the end, in place of the old one; not after an error."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _upload(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:  # an object appears whole when its upload completes
        stream.write(data)


def write_json(uri: str, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_bytes(uri, json.dumps(value, indent=2).encode())


def remove(uri: str) -> None:
    """Deletes a file, if it exists."""
    filesystem, path = resolve(uri)
    with explained_errors(uri, "cannot be deleted"):
        if retried(lambda: filesystem.get_file_info(path), uri).type == pafs.FileType.File:
            retried(lambda: filesystem.delete_file(path), uri)


def write_table(uri: str, table: pa.Table) -> None:
    """Writes one Parquet file atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(uri, sink.getvalue().to_pybytes())


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Reads one Parquet file, or all files directly inside a directory, ordered by name."""
    filesystem, path = resolve(uri)
    if retried(lambda: filesystem.get_file_info(path), uri).type == pafs.FileType.Directory:
        return pa.concat_tables(read_table(join(uri, name), columns) for name in list_names(uri, ".parquet"))
    return retried(lambda: pq.read_table(path, columns=columns, filesystem=filesystem), uri)


def read_footers(uri: str) -> dict[str, pq.FileMetaData]:
    """The metadata of all Parquet files directly inside a directory, ordered by name."""
    filesystem, path = resolve(uri)
    names = list_names(uri, ".parquet")
    with explained_errors(uri), ThreadPoolExecutor(16) as pool:
        read = pool.map(
            lambda name: retried(lambda: pq.read_metadata(f"{path}/{name}", filesystem=filesystem), uri),
            names,
        )
        return dict(zip(names, read, strict=True))


def count_rows(uri: str, remedy: str | None = None) -> int:
    """The number of rows of a Parquet file, from its footer; `remedy` as for `explained_errors`."""
    filesystem, path = resolve(uri)
    with explained_errors(uri, remedy=remedy):
        return retried(lambda: pq.read_metadata(path, filesystem=filesystem), uri).num_rows


class ParquetReader:
    """An open Parquet file, read in row groups with retries.

    Raises:
        OSError, pa.ArrowInvalid: the file is missing, or is not Parquet.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._file = self._open()
        self.schema = self._file.schema_arrow
        self.metadata = self._file.metadata

    def read_row_group(self, group: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of one group."""

        def read() -> pa.Table:
            try:
                return self._file.read_row_group(group, columns=columns)
            except Exception:
                self._file = self._open()
                raise

        return retried(read, self._uri)

    def row_groups(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All rows, a group at a time."""
        for group in range(self.metadata.num_row_groups):
            yield self.read_row_group(group, columns)

    def _open(self) -> pq.ParquetFile:
        filesystem, path = resolve(self._uri)
        return retried(lambda: pq.ParquetFile(opened(filesystem, path)), self._uri)


def download(uri: str, target: str) -> None:
    """Copies a file to this machine, atomically, also if several processes download it.

    Raises:
        OSError: the file cannot be read, or the target cannot be written.
        StoreUnavailable: as `retried`.
    """
    filesystem, path = resolve(uri)
    temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"

    def copy() -> None:
        with filesystem.open_input_stream(path) as source, open(temporary, "wb") as sink:
            shutil.copyfileobj(source, sink, 8 << 20)

    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        retried(copy, uri)
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def local_path(uri: str) -> str | None:
    """The path of a local file; None if it is in a store."""
    filesystem, path = resolve(uri)
    return path if isinstance(filesystem, pafs.LocalFileSystem) else None


def file_size(uri: str) -> int | None:
    """Size of a file in bytes; None if it does not exist or the store does not report it."""
    filesystem, path = resolve(uri)
    with explained_errors(uri):
        return retried(lambda: filesystem.get_file_info(path), uri).size


def list_tree(uri: str) -> list[str]:
    """Sorted paths, relative to a directory, of all files below it; empty if it does not exist."""
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    with explained_errors(uri):
        infos = retried(lambda: filesystem.get_file_info(selector), uri)
    return sorted(i.path[len(path) :].lstrip("/") for i in infos if i.type == pafs.FileType.File)


def list_by_age(uri: str, suffix: str) -> list[str]:
    """Names of the files directly inside a directory, the oldest first."""
    filesystem, path = resolve(uri)
    with explained_errors(uri):
        infos = retried(lambda: filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)), uri)
    found = [i for i in infos if i.type == pafs.FileType.File and i.base_name.endswith(suffix)]
    return [i.base_name for i in sorted(found, key=lambda i: (i.mtime_ns or 0, i.base_name))]


def list_names(uri: str, suffix: str = "") -> list[str]:
    """Sorted names of the files directly inside a directory; empty if it does not exist."""
    filesystem, path = resolve(uri)
    with explained_errors(uri):
        infos = retried(lambda: filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)), uri)
    return sorted(i.base_name for i in infos if i.type == pafs.FileType.File and i.base_name.endswith(suffix))


_CANNOT_BE_READ = "cannot be read"


class explained_errors:
    """Context manager that turns errors of a file system, and of Parquet if a remedy is given, into one line.

    Args:
        uri: The file or directory.
        what: What failed, for the message.
        remedy: What to do about a damaged Parquet file; None leaves its errors as they are.
    """

    def __init__(self, uri: str, what: str = _CANNOT_BE_READ, remedy: str | None = None) -> None:
        self.uri, self.what, self.remedy = uri, what, remedy

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            otherwise = UnreadableError if self.what == _CANNOT_BE_READ else RecoError
            raise file_error(f"{self.uri}: {self.what}: {reason(error)}", error, otherwise) from error
        if isinstance(error, pa.ArrowInvalid) and self.remedy is not None:
            raise UnreadableError(f"{self.uri}: damaged ({reason(error)}): {self.remedy}") from error


def digest(*parts: Any) -> str:
    """A short, stable digest of JSON-able values, 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
