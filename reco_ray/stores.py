"""The stores behind URIs: their file systems, and files in them that are read in pieces.

Local paths, s3:// and gs:// go through pyarrow's own file systems, every other scheme (hf://, ...) through fsspec.
Requests that a store refuses for now are made again (`retries.py`).
"""

import io
import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from reco_ray.errors import RecoError, reason
from reco_ray.retries import retried


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """URI or local path -> (file system, path inside it).

    Raises:
        RecoError: the scheme is unknown, its package is not installed, or the store does not answer.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    if uri.startswith("s3://"):
        bucket, slash, key = uri.removeprefix("s3://").partition("/")
        settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        return _s3(bucket, settings), f"{bucket}{slash}{_unescaped(key)}"
    try:
        # Spaces, "#", "?" and lone percent signs belong to the names people give; escapes are escapes.
        return pafs.FileSystem.from_uri(quote(_escaped(uri), safe="/:@%"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # not one of pyarrow's own schemes
    except OSError as error:
        raise RecoError(f"{uri}: cannot be reached: {reason(error)}") from error
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise RecoError(f"{uri}: cannot open this kind of URI ({error})") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


@lru_cache(maxsize=64)
def _s3(bucket: str, settings: tuple[tuple[str, str], ...]) -> pafs.FileSystem:
    """A bucket's file system, kept: each has connections of its own."""
    environment = dict(settings)
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        try:
            region = retried(lambda: pafs.resolve_s3_region(bucket), f"s3://{bucket}")
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
    )


def _escaped(uri: str) -> str:
    return re.sub("%(?![0-9A-Fa-f]{2})", "%25", uri)


def _unescaped(path: str) -> str:
    return unquote(_escaped(path))


def open_file(uri: str, buffer: int = 1 << 20) -> io.BufferedReader:
    """A file to read and seek in, in pieces of `buffer` bytes; a refused piece is asked for again.

    Raises:
        OSError, StoreUnavailable: as `read_bytes`, also while reading.
    """
    return io.BufferedReader(_RemoteFile(uri), buffer)


class _RemoteFile(io.RawIOBase):
    def __init__(self, uri: str) -> None:
        self._uri, self._place = uri, 0
        filesystem, path = resolve(uri)
        self._open = lambda: filesystem.open_input_file(path)
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
