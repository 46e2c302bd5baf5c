"""Files behind URIs, and artifacts: directories that count only once their manifest is written."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from reco_ray import __version__
from reco_ray.errors import RecoError, reason
from reco_ray.files.differences import in_words
from reco_ray.files.filesystems import read_whole, resolve
from reco_ray.files.retries import retried
from reco_ray.files.written import note

MANIFEST = "manifest.json"
STARTED = "started.json"
SCHEMA_VERSION = 1
BEING_CLEARED: dict[str, Any] = {}  # stands for what an artifact is made from while its files are deleted


# --- URIs ---------------------------------------------------------------------------------------------------


def join(uri: str, *parts: str) -> str:
    """Appends path segments to a URI or local path."""
    return "/".join([uri.rstrip("/"), *parts])


def absolute(uri: str) -> str:
    """Local paths made absolute, so that workers in another directory find them; URIs as they are."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def exists(uri: str) -> bool:
    """Whether a file or a directory is there."""
    filesystem, path = resolve(uri)
    with explained_errors(uri):
        return retried(lambda: filesystem.get_file_info(path), uri).type != pafs.FileType.NotFound


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The whole file.

    Args:
        limit: larger files are refused, bytes.

    Raises:
        FileNotFoundError, OSError: as the file system says; callers decide whether that is fatal.
        StoreUnavailable: as `retried`.
    """
    filesystem, path = resolve(uri)
    return retried(lambda: read_whole(filesystem, path, limit), uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file atomically: readers see the old content or the new, never half of it.

    Raises:
        RecoError: the place cannot be written.
    """
    if uri.startswith(
        "hf://"
    ):  # every file would be a commit of its own, of which the hub allows some a minute
        raise RecoError(f"{uri}: cannot be written: hf:// is only read: choose another --out")
    filesystem, path = resolve(uri)
    parent = path.rpartition("/")[0]
    with explained_errors(uri, "cannot be written"):
        if isinstance(filesystem, pafs.LocalFileSystem):
            filesystem.create_dir(parent, recursive=True)
            temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                if os.path.exists(temporary):
                    os.remove(temporary)
        else:
            retried(lambda: _upload(filesystem, path, data), uri)
    note(uri, data)


def _upload(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:  # an object appears whole when its upload completes
        stream.write(data)


def write_json(uri: str, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_bytes(uri, json.dumps(value, indent=2).encode())


def remove(uri: str) -> None:
    """Deletes a file, if it is there."""
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
    """Reads one Parquet file, or all those directly inside a directory in the order of their names."""
    filesystem, path = resolve(uri)
    if retried(lambda: filesystem.get_file_info(path), uri).type == pafs.FileType.Directory:
        return pa.concat_tables(read_table(join(uri, name), columns) for name in list_names(uri, ".parquet"))
    return retried(lambda: pq.read_table(path, columns=columns, filesystem=filesystem), uri)


def read_footers(uri: str) -> dict[str, pq.FileMetaData]:
    """Of every Parquet file directly inside a directory, by name in order: its row count and metadata."""
    filesystem, path = resolve(uri)
    names = list_names(uri, ".parquet")
    with (
        explained_errors(uri),
        ThreadPoolExecutor(16) as pool,
    ):  # an object store answers each after some milliseconds
        read = pool.map(
            lambda name: retried(lambda: pq.read_metadata(f"{path}/{name}", filesystem=filesystem), uri),
            names,
        )
        return dict(zip(names, read, strict=True))


def list_names(uri: str, suffix: str = "") -> list[str]:
    """Sorted names of the files directly inside a directory; empty if it does not exist."""
    filesystem, path = resolve(uri)
    with explained_errors(uri):
        infos = retried(lambda: filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)), uri)
    return sorted(i.base_name for i in infos if i.type == pafs.FileType.File and i.base_name.endswith(suffix))


class explained_errors:
    """Context manager that turns errors of a file system, and of Parquet if a remedy is given, into one line.

    Args:
        uri: The file or directory.
        what: What failed, for the message.
        remedy: What to do about a damaged Parquet file; None leaves its errors as they are.
    """

    def __init__(self, uri: str, what: str = "cannot be read", remedy: str | None = None) -> None:
        self.uri, self.what, self.remedy = uri, what, remedy

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise RecoError(f"{self.uri}: {self.what}: {reason(error)}") from error
        if isinstance(error, pa.ArrowInvalid) and self.remedy is not None:
            raise RecoError(f"{self.uri}: damaged ({reason(error)}): {self.remedy}") from error


# --- artifacts ----------------------------------------------------------------------------------------------


class Sealed(BaseModel):
    """Of `checksums.parquet`, which lists every file of the artifact (`checksums.py`)."""

    files: int
    bytes: int
    sha256: str = Field(description="of checksums.parquet itself")


class Manifest(BaseModel):
    """What an artifact is and what made it. Written last: a directory without it is unfinished."""

    kind: str
    schema_version: int = SCHEMA_VERSION
    made_by: str = f"reco-ray {__version__}"
    made_at: str = Field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    made_from: dict[str, Any] = Field(
        description="inputs, settings and model fingerprints that determine the content"
    )
    counts: dict[str, int] = {}
    seconds: float = 0.0
    content: dict[str, Any] = Field(default={}, description="what a reader needs to open the files")
    checksums: Sealed | None = Field(default=None, description="None = made before they were kept")


def read_manifest(uri: str, kind: str | None = None) -> Manifest:
    """Opens an artifact.

    Args:
        kind: what it must be; None = anything.

    Raises:
        RecoError: nothing is there, it is unfinished, or it is of another kind or a newer schema.
    """
    try:
        manifest = Manifest.model_validate_json(read_bytes(join(uri, MANIFEST)))
    except FileNotFoundError as error:
        state = (
            "is unfinished: run the command that makes it again"
            if exists(join(uri, STARTED))
            else "is not there"
        )
        what = f"this {kind} artifact" if kind else "this artifact"
        raise RecoError(f"{uri}: {what} {state} (no {MANIFEST})") from error
    except ValidationError as error:
        raise RecoError(
            f"{uri}/{MANIFEST}: not a manifest: delete the directory and make it again"
        ) from error
    except OSError as error:
        raise RecoError(f"{uri}: cannot be read: {reason(error)}") from error
    if kind and manifest.kind != kind:
        raise RecoError(f"{uri}: holds {manifest.kind}, but {kind} is needed here")
    if manifest.schema_version > SCHEMA_VERSION:
        raise RecoError(
            f"{uri}: schema {manifest.schema_version} was made by a newer version ({manifest.made_by})"
        )
    return manifest


class ArtifactWriter:
    """One artifact being made: touches nothing else, resumes its own unfinished work, commits at the end.

    `made_from` is everything that determines the content. The same `made_from` over a finished artifact means
    that there is nothing to do; over an unfinished one, that work goes on; any other content is left alone.
    """

    def __init__(self, uri: str, kind: str, made_from: Mapping[str, Any]) -> None:
        self.uri, self.kind = absolute(uri), kind
        self.made_from = json.loads(json.dumps(made_from))
        self._started_at = time.monotonic()

    def finished(self) -> Manifest | None:
        """The manifest if this very artifact is already there, else None after claiming the directory.

        Raises:
            RecoError: the directory holds something else, or cannot be written.
        """
        if exists(join(self.uri, MANIFEST)):
            manifest = read_manifest(self.uri, self.kind)
            self._require_same(manifest.made_from, "made")
            return manifest
        begun = self.stored()
        if begun is None:
            self.begin()
        else:
            self._require_same(begun, "begun")
        return None

    def stored(self) -> dict[str, Any] | None:
        """What the artifact that lies here was made or begun from, None if the directory is empty.

        Raises:
            RecoError: the directory holds something else, or cannot be read.
        """
        if exists(join(self.uri, MANIFEST)):
            return read_manifest(self.uri, self.kind).made_from
        if exists(join(self.uri, STARTED)):
            try:
                started = json.loads(read_bytes(join(self.uri, STARTED)))
                kind, made_from = started["kind"], dict(started["made_from"])
            except (ValueError, KeyError, TypeError) as error:
                raise RecoError(f"{self.uri}/{STARTED}: damaged: delete the directory") from error
            if kind != self.kind:
                raise RecoError(f"{self.uri}: holds unfinished {kind}, choose another --out")
            return made_from
        filesystem, path = resolve(self.uri)
        with explained_errors(self.uri, "cannot be written"):
            if retried(
                lambda: filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)), self.uri
            ):
                raise RecoError(f"{self.uri}: is not empty and no {self.kind} artifact: choose another --out")
        return None

    def begin(self, made_from: Mapping[str, Any] | None = None) -> None:
        """Claims the directory: from here on what lies in it is unfinished work from `made_from`.

        Args:
            made_from: None = this writer's own.
        """
        remove(join(self.uri, MANIFEST))
        started = {"kind": self.kind, "made_from": self.made_from if made_from is None else made_from}
        write_bytes(join(self.uri, STARTED), json.dumps(started, indent=2).encode())

    def commit(self, counts: Mapping[str, int], content: Mapping[str, Any] | None = None) -> Manifest:
        """Writes the checksums, then the manifest: from here on the artifact exists."""
        from reco_ray.files.checksums import forget_notes, seal  # it reads and writes through this file

        sealed = seal(self.uri)
        manifest = Manifest(
            kind=self.kind,
            made_from=self.made_from,
            counts=dict(counts),
            seconds=round(time.monotonic() - self._started_at, 2),
            content=dict(content or {}),
            checksums=sealed,
        )
        write_bytes(join(self.uri, MANIFEST), manifest.model_dump_json(indent=2).encode())
        forget_notes(self.uri)
        return manifest

    def _require_same(self, stored: dict[str, Any], verb: str) -> None:
        if stored == BEING_CLEARED:
            raise RecoError(
                f"{self.uri}: a reco-ray run that replaces it was stopped half-way: run it again, or delete it"
            )
        if stored != self.made_from:
            raise RecoError(
                f"{self.uri}: {verb} with {in_words(stored, self.made_from)}: choose another --out, "
                "or delete it to make it anew"
            )


def digest(*parts: Any) -> str:
    """A short, stable digest of JSON-able values: names what a file was made from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
