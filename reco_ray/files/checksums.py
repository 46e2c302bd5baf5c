"""Checksums of an artifact: computed while workers write it, collected at its commit, checked by `reco-ray verify`.

- A worker records what it writes and saves it as `checksums/<digest>.parquet`, one small file per shard.
- The commit lists the artifact, collects these checksums, reads only files without one (those of the driver and of
  killed workers), and writes `checksums.parquet`: `path`, `size`, `sha256`.
- The manifest contains the SHA-256 of that file, and thus covers every byte: signing it signs the artifact.
"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import BaseModel, Field

from reco_ray.errors import UnreadableError, reason
from reco_ray.files import storage
from reco_ray.files.filesystems import delete_folder
from reco_ray.files.read_ahead import prefetched
from reco_ray.files.recorded_writes import FileChecksum, recording_writes
from reco_ray.files.retries import retried

FILE = "checksums.parquet"
FOLDER = "checksums"
MANIFEST = "manifest.json"
STARTED = "started.json"  # in the directory of an artifact that is being made
SCHEMA = pa.schema([("path", pa.string()), ("size", pa.int64()), ("sha256", pa.string())])
_READERS = 16  # an object store answers each after some milliseconds
_PIECE = 8 << 20


class ChecksumTable(BaseModel):
    """Summary of `checksums.parquet`, which lists every file of the artifact."""

    files: int
    bytes: int
    sha256: str = Field(description="of checksums.parquet itself")


def with_checksums(work: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `work`, and saves the checksums of the files that it wrote in each artifact concerned."""
    with recording_writes() as recording:
        result = work(*arguments)
    artifacts: dict[str, dict[str, FileChecksum]] = {}
    for uri, noted in recording.items():
        if root := _artifact_around(uri.rpartition("/")[0]):
            artifacts.setdefault(root, {})[uri.removeprefix(root).lstrip("/")] = noted
    for root, files in artifacts.items():
        # A retry writes the same files, and so the same name.
        storage.write_table(
            storage.join(root, FOLDER, f"{storage.digest(sorted(files))}.parquet"), _table(files)
        )
    return result


def write_checksums(uri: str) -> ChecksumTable:
    """Writes `checksums.parquet` of an artifact that is complete except for its manifest.

    Raises:
        UnreadableError: a file cannot be read.
    """
    filesystem, root = storage.resolve(uri)
    root = root.rstrip("/")
    listed = list_files(filesystem, root)
    known: dict[str, FileChecksum] = {}
    stored: pa.Table | None = None
    infos = _checksum_files(filesystem, root)
    files = [storage.join(uri, info.path.removeprefix(f"{root}/")) for info in infos]
    tables = prefetched(storage.read_table, files, _READERS, 4 * _READERS)
    for info, notes in zip(infos, tables, strict=True):
        if info.base_name == FILE:  # of a commit that was killed before its manifest
            stored = notes
        for row in notes.to_pylist():
            file = listed.get(row["path"])
            # A file that was written again has another size, or is newer than its checksum.
            if file and file.size == row["size"] and file.mtime_ns and file.mtime_ns < (info.mtime_ns or 0):
                known[row["path"]] = FileChecksum(row["size"], row["sha256"])
    unknown = [path for path in listed if path not in known]
    for path, noted in zip(unknown, read_sums(filesystem, root, unknown), strict=True):
        if isinstance(noted, str):
            raise UnreadableError(f"{storage.join(uri, path)}: cannot be read back: {noted}")
        known[path] = noted
    table = _table(known)
    if stored is None or not table.equals(stored):
        storage.write_table(storage.join(uri, FILE), table)
    return ChecksumTable(
        files=len(known),
        bytes=sum(noted.size for noted in known.values()),
        sha256=hashlib.sha256(storage.read_bytes(storage.join(uri, FILE))).hexdigest(),
    )


def delete_worker_checksums(uri: str) -> None:
    """Deletes the workers' checksum files, after the commit."""
    delete_folder(storage.join(uri, FOLDER))


@lru_cache(maxsize=4096)
def _artifact_around(directory: str) -> str | None:
    """The closest parent directory that an `ArtifactWriter` has claimed."""
    if not directory or directory.endswith((":", "/")):
        return None
    if storage.exists(storage.join(directory, STARTED)):
        return directory
    return _artifact_around(directory.rpartition("/")[0])


def _table(files: dict[str, FileChecksum]) -> pa.Table:
    rows = [{"path": path, **noted._asdict()} for path, noted in sorted(files.items())]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _infos(filesystem: pafs.FileSystem, path: str, recursive: bool = False) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    infos = retried(lambda: filesystem.get_file_info(selector), path)
    return [info for info in infos if info.type == pafs.FileType.File]


def _checksum_files(filesystem: pafs.FileSystem, root: str) -> list[pafs.FileInfo]:
    """The existing checksum files, the newest last."""
    whole = retried(lambda: filesystem.get_file_info(f"{root}/{FILE}"), root)
    found = [*_infos(filesystem, f"{root}/{FOLDER}"), *([whole] if whole.type == pafs.FileType.File else [])]
    return sorted(found, key=lambda info: info.mtime_ns or 0)


def list_files(filesystem: pafs.FileSystem, root: str) -> dict[str, pafs.FileInfo]:
    """The artifact's files by relative path, without those of artifacts below it, which have their own checksums."""
    root = root.rstrip("/")
    found = {info.path.removeprefix(f"{root}/"): info for info in _infos(filesystem, root, recursive=True)}
    inner = {p.rpartition("/")[0] for p in found if p.endswith((f"/{MANIFEST}", f"/{STARTED}"))}
    outside = tuple(f"{folder}/" for folder in {*inner, FOLDER})
    own = (MANIFEST, FILE)
    return {path: info for path, info in found.items() if path not in own and not path.startswith(outside)}


def read_sums(filesystem: pafs.FileSystem, root: str, paths: list[str]) -> Iterable[FileChecksum | str]:
    """The current size and digest of each file, or the reason why it cannot be read."""

    def read(path: str) -> FileChecksum:
        digest, size = hashlib.sha256(), 0
        with filesystem.open_input_stream(f"{root}/{path}") as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
                size += len(piece)
        return FileChecksum(size, digest.hexdigest())

    def read_or_reason(path: str) -> FileChecksum | str:
        try:
            return retried(lambda: read(path), f"{root}/{path}")
        except OSError as error:
            return reason(error)

    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read_or_reason, paths)
