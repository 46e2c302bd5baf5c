"""Writes files that need not fit into memory."""

import shutil
import tempfile
from collections.abc import Iterable
from typing import BinaryIO

import pyarrow.fs as pafs

from reco_ray.files.retries import retried
from reco_ray.files.storage import explained_errors, local_file, resolve_for_writing

_PIECE = 8 << 20


def write_chunks(uri: str, chunks: Iterable[bytes]) -> None:
    """Writes a file piece by piece, atomically.

    For a store the pieces are collected in a temporary file first: an upload that breaks off because a piece cannot be
    had would otherwise leave an object that looks complete.

    Raises:
        RecoError: it cannot be written.
    """
    filesystem, path = resolve_for_writing(uri)
    with explained_errors(uri, "cannot be written"):
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with tempfile.TemporaryFile(prefix="reco-ray-") as collected:
                collected.writelines(chunks)
                retried(lambda: _upload(filesystem, path, collected), uri)
            return
        with local_file(path) as file:
            file.writelines(chunks)


def _upload(filesystem: pafs.FileSystem, path: str, file: BinaryIO) -> None:
    file.seek(0)
    with filesystem.open_output_stream(path) as stream:
        shutil.copyfileobj(file, stream, _PIECE)
