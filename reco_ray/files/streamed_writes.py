"""Writes files that need not fit into memory."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from typing import BinaryIO

import pyarrow.fs as pafs

from reco_ray.files.filesystems import resolve
from reco_ray.files.retries import retried
from reco_ray.files.storage import explained_errors

_PIECE = 8 << 20


def write_chunks(uri: str, chunks: Iterable[bytes]) -> None:
    """Writes a file piece by piece, atomically.

    For a store the pieces are collected in a temporary file first: an upload that breaks off because a piece cannot be
    had would otherwise leave an object that looks complete.

    Raises:
        RecoError: it cannot be written.
    """
    filesystem, path = resolve(uri)
    with explained_errors(uri, "cannot be written"):
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with tempfile.TemporaryFile(prefix="reco-ray-") as file:
                file.writelines(chunks)
                retried(lambda: _upload(filesystem, path, file), uri)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


def _upload(filesystem: pafs.FileSystem, path: str, file: BinaryIO) -> None:
    file.seek(0)
    with filesystem.open_output_stream(path) as stream:
        shutil.copyfileobj(file, stream, _PIECE)
