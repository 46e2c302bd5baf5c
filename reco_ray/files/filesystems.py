"""File systems behind URIs, and files that are read in pieces.

Local paths, s3:// and gs:// go through pyarrow's own file systems, every other scheme (hf://, ...) through fsspec.
Requests that fail temporarily are retried (`retries.py`).
"""

import errno
import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs
import requests

from reco_ray.errors import MissingPackageError, RecoError, UnreadableError, reason
from reco_ray.files.proxies import Proxy, proxy_of
from reco_ray.files.retries import is_transient, retried, retry_seconds


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """URI or local path -> (file system, path inside it).

    Raises:
        RecoError: the scheme is unknown, its package is not installed, or the store does not answer.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    scheme, _, rest = uri.partition("://")
    if scheme == "s3":
        settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        return _s3(rest.partition("/")[0], settings, proxy_of(uri)), _unescaped(rest)
    if scheme in ("gs", "gcs"):
        path = rest.removeprefix(_ANONYMOUS)
        seconds = max(1, min(10, int(retry_seconds())))
        return _gcs(path != rest, os.environ.get("STORAGE_EMULATOR_HOST", ""), seconds), _unescaped(path)
    if scheme == "hf":
        return _hub(), rest.rstrip("/")
    try:
        # Spaces, "#", "?" and single percent signs are part of file names; valid escapes are decoded.
        return pafs.FileSystem.from_uri(quote(_escaped(uri), safe="/:@%"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # not one of pyarrow's own schemes
    except OSError as error:
        raise RecoError(f"{uri}: cannot be reached: {reason(error)}") from error
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(uri, **_http_options(scheme, uri))
    except (ImportError, ValueError) as error:
        kind = MissingPackageError if isinstance(error, ImportError) else UnreadableError
        raise kind(f"{uri}: cannot open this kind of URI ({error})") from error
    return pafs.PyFileSystem(_Handler(filesystem)), path


def _http_options(scheme: str, uri: str) -> dict[str, str]:
    """Options that fsspec passes to aiohttp, which does not read proxy variables itself."""
    proxy = proxy_of(uri) if scheme in ("http", "https") else None
    return {"proxy": proxy.url} if proxy else {}


@lru_cache(maxsize=64)
def _s3(bucket: str, settings: tuple[tuple[str, str], ...], proxy: Proxy | None) -> pafs.FileSystem:
    """A bucket's file system, cached for its connections. The AWS SDK does not read proxy variables itself."""
    environment = dict(settings)
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        try:
            region = retried(lambda: _region(bucket, proxy), f"s3://{bucket}")
        except OSError as error:
            raise RecoError(f"s3://{bucket}: cannot be reached: {reason(error)}") from error
    scheme, _, host = (endpoint or "").rpartition("://")
    return pafs.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=host or None,
        scheme=scheme or "https",
        allow_delayed_open=True,  # a small object is one request, not three
        connect_timeout=10,
        request_timeout=30,
        proxy_options=proxy.url if proxy else None,
    )


def _region(bucket: str, proxy: Proxy | None) -> str:
    """The region of a bucket, by a request to it. pyarrow's own does not use a proxy."""
    if proxy is None:
        return pafs.resolve_s3_region(bucket)
    address = f"https://{bucket}.s3.amazonaws.com"
    response = requests.head(address, timeout=(10, 30), allow_redirects=False)
    try:
        return response.headers["x-amz-bucket-region"]
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, f"no bucket {bucket}, or the proxy {proxy} refuses") from None


_PIECE = 1 << 20  # default bytes per request
_ANONYMOUS = "anonymous@"  # gs://anonymous@bucket: without looking for credentials, as pyarrow writes it


@lru_cache(maxsize=4)
def _gcs(anonymous: bool, emulator: str, seconds: int) -> pafs.FileSystem:
    """Google Cloud Storage, or an emulator of it, which needs no credentials.

    Args:
        anonymous: access without credentials.
        emulator: address, "" for none.
        seconds: limit of the client's own retries, by default 15 minutes; `retried` continues after it.
    """
    scheme, _, host = emulator.rstrip("/").rpartition("://")
    return pafs.GcsFileSystem(
        anonymous=anonymous or bool(emulator),
        scheme=(scheme or "http") if emulator else None,
        endpoint_override=host or None,
        retry_time_limit=timedelta(seconds=seconds),
    )


@lru_cache(maxsize=1)
def _hub() -> pafs.FileSystem:
    """Hugging Face's hub. Shared by all threads, as it caches the folder listings that reading a file needs."""
    from huggingface_hub import HfFileSystem

    # It logs every retry to the terminal.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return pafs.PyFileSystem(_Handler(HfFileSystem()))


class _Handler(pafs.FSSpecHandler):
    """fsspec's file systems, without `isfile`, `isdir` and `exists`, which report any error as "not found":
    images would be missing while a store fails temporarily.
    """

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        with _as_os_error():
            self.fs.invalidate_cache()  # called first by listings, which must be current
            return super().get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        folder = selector.base_dir
        try:
            with _as_os_error():
                if selector.recursive:
                    found = self.fs.find(folder, withdirs=True, detail=True).values()
                else:
                    found = self.fs.ls(folder, detail=True)
        except FileNotFoundError:
            if not selector.allow_not_found:
                raise
            return []
        infos = [self._create_file_info(entry["name"], entry) for entry in found]
        return [info for info in infos if info.path.strip("/") != folder.strip("/")]

    def open_input_file(self, path: str) -> pa.PythonFile:
        with _as_os_error():
            return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")

    open_input_stream = open_input_file


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turns exceptions of HTTP clients and name checks into OSErrors; restores the cause of fsspec's "not found"."""
    try:
        yield
    except FileNotFoundError as error:
        if error.__cause__ is not None and is_transient(error.__cause__):
            raise OSError(reason(error.__cause__)) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(reason(error)) from error


def _escaped(uri: str) -> str:
    return re.sub("%(?![0-9A-Fa-f]{2})", "%25", uri)


def _unescaped(path: str) -> str:
    return unquote(_escaped(path))


def is_flat(filesystem: pafs.FileSystem) -> bool:
    """Whether listings contain only folders that were created explicitly, as pyarrow's do for Google's storage."""
    return isinstance(filesystem, pafs.GcsFileSystem)


def list_folders(uri: str) -> list[str]:
    """Sorted names of the folders directly inside a folder; empty if it does not exist."""
    filesystem, path = resolve(uri)
    flat = is_flat(filesystem)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=flat)
    infos = retried(lambda: filesystem.get_file_info(selector), uri)
    if not flat:
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)
    inside = [info.path.removeprefix(f"{path.rstrip('/')}/").partition("/") for info in infos]
    return sorted({name for name, slash, _ in inside if slash})


def delete_folder(uri: str) -> None:
    """Deletes a folder with its content, if it exists."""
    filesystem, path = resolve(uri)
    if is_flat(filesystem):
        retried(lambda: filesystem.delete_dir_contents(path, missing_dir_ok=True), uri)
    elif retried(lambda: filesystem.get_file_info(path), uri).type == pafs.FileType.Directory:
        retried(lambda: filesystem.delete_dir(path), uri)


def opened(filesystem: pafs.FileSystem, path: str) -> pa.NativeFile:
    """`open_input_file`, with errors raised at once.

    For Google's storage, pyarrow delays the first request until `closed` is read, and then reports an error as True.
    """
    file = filesystem.open_input_file(path)
    if file.closed:
        raise ConnectionResetError("the store closed it as soon as it was opened")
    return file


def read_whole(filesystem: pafs.FileSystem, path: str, limit: int | None = None) -> bytes:
    """A file's bytes.

    Raises:
        OSError: it cannot be read, or is larger than `limit` bytes.
    """
    if isinstance(filesystem, pafs.GcsFileSystem):  # one request as a stream, three as a file
        with filesystem.open_input_stream(path, compression=None) as stream:
            data = bytearray()
            while piece := stream.read(_PIECE):
                data += piece
                if limit is not None and len(data) > limit:
                    raise OSError(f"too large: more than {limit:,} bytes")
            return bytes(data)
    with filesystem.open_input_file(path) as file:
        size = file.size()
        if limit is not None and size > limit:
            raise OSError(f"too large: {size:,} bytes, the limit is {limit:,}")
        return file.read(size)


def open_file(uri: str, buffer: int = _PIECE) -> io.BufferedReader:
    """Opens a seekable file that is read in pieces of `buffer` bytes, with retries.

    Raises:
        OSError, StoreUnavailable: as `read_bytes`, also while reading.
    """
    return io.BufferedReader(_RemoteFile(uri), buffer)


class _RemoteFile(io.RawIOBase):
    def __init__(self, uri: str) -> None:
        self._uri, self._place = uri, 0
        filesystem, path = resolve(uri)
        self._open = lambda: opened(filesystem, path)
        self._file = retried(self._open, uri)
        self.size = self._file.size()

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self.size - self._place))
        data = retried(lambda: self._piece(wanted), self._uri) if wanted else b""
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _piece(self, wanted: int) -> bytes:
        try:
            self._file.seek(self._place)
            data = self._file.read(wanted)
        except Exception:
            self._file = self._open()
            raise
        if not data:
            raise OSError("it has become shorter while it was read")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
