"""Writes the images that a search has found to a folder or a tar, with a manifest of where they came from."""

import csv
import hashlib
import io
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from PIL import Image

from reco_ray.corpus import heic
from reco_ray.corpus.load import read_or_error
from reco_ray.errors import RecoError, UnreadableError, reason
from reco_ray.files import storage
from reco_ray.files.read_ahead import prefetched
from reco_ray.files.streamed_writes import write_chunks

MANIFEST = "manifest.csv"
_COLUMNS = ("file", "rank", "similarity", "uri", "image_id", "width", "height", "problem")
_PIECE = 1 << 20
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}


def export_hits(hits: pa.Table, out: str) -> int:
    """Writes the images as they are, named by their rank, and `manifest.csv`.

    An image that cannot be read, or is not the one that was embedded any more, has a `problem` in the manifest; the
    latter is written nevertheless.

    Args:
        hits: of `search_corpus`.
        out: URI of a folder, or of a file that ends in `.tar`.

    Returns:
        The number of images written.

    Raises:
        RecoError: `out` has content or cannot be written, or no image can be read.
    """
    require_free(out)
    if not _is_tar(out):
        return _write(hits, lambda name, data: storage.write_bytes(storage.join(out, name), data))
    with tempfile.TemporaryFile(prefix="reco-ray-") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            count = _write(hits, lambda name, data: _add(tar, name, data))
        file.seek(0)
        write_chunks(out, iter(lambda: file.read(_PIECE), b""))
    return count


def require_free(out: str) -> None:
    """Raises RecoError if there is something at the place of an export."""
    if storage.exists(out) if _is_tar(out) else storage.list_tree(out):
        raise RecoError(f"--export {out}: is there already: choose another place, or delete it")


def _is_tar(out: str) -> bool:
    return out.lower().endswith(".tar")


def _write(hits: pa.Table, write: Callable[[str, bytes], None]) -> int:
    table = io.StringIO()
    rows = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
    rows.writeheader()
    written, first = 0, ""
    for row, data in _read(hits):
        if isinstance(data, OSError):
            row["problem"] = f"cannot be read: {reason(data)}"
            first = first or f"{row['uri']}: {row['problem']}"
        else:
            row["file"] = f"{row['rank']:05d}{_suffix(data)}"
            if hashlib.sha256(data).hexdigest() != row["image_id"]:
                row["problem"] = "changed since it was embedded"
            write(row["file"], data)
            written += 1
        rows.writerow(row)
    if not written:
        raise UnreadableError(f"--export: none of the {hits.num_rows} images can be read ({first})")
    write(MANIFEST, table.getvalue().encode())
    return written


def _read(hits: pa.Table) -> Iterator[tuple[dict[str, Any], bytes | OSError]]:
    columns = hits.select([name for name in _COLUMNS if name in hits.column_names]).to_pylist()
    yield from zip(columns, prefetched(read_or_error, hits["uri"].to_pylist()), strict=True)


def _suffix(data: bytes) -> str:
    """The suffix of an image by its content: members of containers have none in their address."""
    if heic.is_heic(data):
        return ".heic"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = str(Image.open(io.BytesIO(data)).format)
    except Exception:  # Pillow's plugins raise a dozen kinds
        return ""
    return _SUFFIXES.get(kind, f".{kind.lower()}")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
