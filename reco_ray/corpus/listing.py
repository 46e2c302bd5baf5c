"""Which files a source has: folders, globs, list files, tables of URIs; a container of images is one row.

At 100 million rows a Python list of tuples takes 20 GB; so rows go into Arrow columns while they are found, folder by
folder.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from reco_ray import storage, stores
from reco_ray.ahead import prefetched
from reco_ray.corpus import heic, tables, video
from reco_ray.errors import RecoError, reason
from reco_ray.retries import retried

IMAGE_SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif".split()) + heic.SUFFIXES
LIST_SUFFIXES = (".txt", ".lst")
COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CONTAINER_SUFFIXES = (".tar", ".parquet", *video.SUFFIXES)
CONTAINER_PATTERN = f"(?i)({'|'.join(map(re.escape, CONTAINER_SUFFIXES))})$"
SCHEMA = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("images", pa.int64())])

UNKNOWN = -1
_BATCH = 65_536


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    table: SCHEMA. `size` in bytes, -1 where the source does not say; `images` in the file, -1 where only
    reading it will tell (tars, video). Files that were found are ordered by size, then URI: those of the same
    content have the same size, so they end up side by side, nearly always in the same shard, where they cost
    one forward pass. Lists and tables of URIs keep their order.
    root: what URIs can be shown relative to. fingerprint: changes when a file comes, goes or is resized.
    """

    table: pa.Table
    root: str
    fingerprint: str


def is_container(uri: str) -> bool:
    """Whether a file holds images instead of being one: a tar, a table, a video."""
    return uri.lower().endswith(CONTAINER_SUFFIXES)


def list_files(uri: str, image_column: str | None = None) -> Listing:
    """Lists a folder (recursively), a glob, a list (one URI a line), Parquet, tars, videos, or one image.

    In a glob, `*` and `?` stay inside one folder and `**/` spans any number. A folder is its images; if it has
    none, its tars and tables; if none of those either, its videos.

    Args:
        image_column: the column of tables that holds the images or names them, where the user says so.

    Raises:
        RecoError: nothing is there, or it holds no images.
    """
    uri = storage.absolute(uri)
    root, is_list = uri, False
    magic = re.search(r"[*?[]", uri)
    if uri.lower().endswith(COMPRESSED_TAR_SUFFIXES):
        raise RecoError(
            f"{uri}: no image inside a compressed tar can be read by itself: decompress it to .tar"
        )
    if uri.endswith(LIST_SUFFIXES):
        root, table, is_list = uri.rpartition("/")[0], _table(_read_list(uri)), True
    elif uri.startswith(("http://", "https://")):
        root, table = uri.rpartition("/")[0], _table([(uri, -1)])
    elif magic and not storage.exists(uri):  # "holiday [2024]" may be a folder's name
        root = uri[: magic.start()].rpartition("/")[0]
        pattern = _glob_pattern(uri)
        table = _table(file for file in _walk(root) if pattern.fullmatch(file[0]))
    elif uri.lower().endswith(IMAGE_SUFFIXES):
        root, table = uri.rpartition("/")[0], _table(_walk(uri))
    elif is_container(uri):
        table = _table(_walk(uri))
    else:
        table = _folder(uri)
    found = table.num_rows
    table = _opened(table, image_column)
    is_list = is_list or table.num_rows != found
    if not pc.any(pc.not_equal(table["images"], 0)).as_py():
        raise RecoError(f"{uri}: no images here (looked for {' '.join(IMAGE_SUFFIXES + CONTAINER_SUFFIXES)})")
    if not heic.available() and pc.all(pc.match_substring_regex(table["uri"], heic.PATTERN)).as_py():
        raise RecoError(f"{uri}: all {table.num_rows:,} images are HEIC. {heic.MISSING}")
    if not is_list:
        table = table.sort_by([("size", "ascending"), ("uri", "ascending")])
    return Listing(table, root, fingerprint(table))


def fingerprint(table: pa.Table) -> str:
    """16 hex digits that change with any URI or size, and with the order."""
    digest = hashlib.sha256()
    for batch in table.to_batches(_BATCH):
        lines = pc.binary_join_element_wise(batch["uri"], pc.cast(batch["size"], pa.string()), "\t")
        digest.update("".join(f"{line}\n" for line in lines.to_pylist()).encode())
    return digest.hexdigest()[:16]


def _table(files: Iterable[tuple[str, int]]) -> pa.Table:
    batches, names, sizes = [], list[str](), list[int]()
    for name, size in files:
        names.append(name)
        sizes.append(size)
        if len(names) == _BATCH:
            batches.append(_batch(names, sizes))
            names, sizes = [], []
    return pa.Table.from_batches([*batches, _batch(names, sizes)], SCHEMA)


def _batch(names: list[str], sizes: list[int]) -> pa.RecordBatch:
    images = [UNKNOWN if is_container(name) else 1 for name in names]
    return pa.RecordBatch.from_pydict({"uri": names, "size": sizes, "images": images}, SCHEMA)


def _folder(uri: str) -> pa.Table:
    """The first kind of files that is there: a folder of photographs may hold a clip that nobody meant."""
    table = _table(_walk(uri))
    for suffixes in (IMAGE_SUFFIXES, (".tar", ".parquet"), video.SUFFIXES):
        mask = pc.match_substring_regex(table["uri"], f"(?i)({'|'.join(map(re.escape, suffixes))})$")
        if pc.any(mask).as_py():
            return table.filter(mask)
    return table.slice(0, 0)


def _opened(table: pa.Table, image_column: str | None) -> pa.Table:
    """Looks into the tables: those of images get their number of rows, those of URIs are replaced by them."""
    if pc.any(pc.match_substring_regex(table["uri"], video.PATTERN)).as_py():
        video.require_av()
    places = pc.indices_nonzero(pc.ends_with(table["uri"], ".parquet", ignore_case=True)).to_pylist()
    count_rows = partial(tables.count_rows, image_column=image_column)
    rows = list(prefetched(count_rows, table["uri"].take(pa.array(places, pa.int64())).to_pylist()))
    if not places:
        return table
    images = table["images"].to_numpy().copy()
    images[places] = [UNKNOWN if count is None else count for count in rows]
    table = table.set_column(2, "images", pa.array(images))
    if None not in rows:
        return table
    parts, start = [], 0
    for place in (place for place, count in zip(places, rows, strict=True) if count is None):
        parts += [
            table.slice(start, place - start),
            _table(_uris_of(table["uri"][place].as_py(), image_column)),
        ]
        start = place + 1
    return pa.concat_tables([*parts, table.slice(start)])


def _uris_of(table: str, image_column: str | None) -> Iterator[tuple[str, int]]:
    return ((tables.beside(table, name), -1) for name in tables.read_uris(table, image_column))


def _walk(uri: str) -> Iterator[tuple[str, int]]:
    """(uri, size) of every file under a folder, or of the one file; a folder's names are held at a time."""
    filesystem, path = storage.resolve(uri)
    prefix = uri[: len(uri) - len(path)] if uri.endswith(path) else uri.partition("://")[0] + "://"
    # pyarrow reads percent escapes in URIs, so a percent sign in a name must be one.
    escapes = "://" in uri and not isinstance(filesystem, pafs.PyFileSystem)
    try:
        info = retried(lambda: filesystem.get_file_info(path), uri)
        if info.type == pafs.FileType.NotFound:
            private = ", or a private one and no HF_TOKEN" if uri.startswith("hf://") else ""
            raise RecoError(f"{uri}: no such file or folder{private}")
        waiting = [info]
        while waiting:
            entry = waiting.pop()
            if entry.type == pafs.FileType.File:
                yield prefix + (entry.path.replace("%", "%25") if escapes else entry.path), entry.size
            elif entry.type == pafs.FileType.Directory:
                waiting += _inside(filesystem, entry.path, uri)
    except OSError as error:
        raise RecoError(f"{uri}: cannot be listed: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise RecoError(f"{uri}: the file name {error.object!r} is not UTF-8: rename it") from error


def _inside(filesystem: pafs.FileSystem, folder: str, uri: str) -> list[pafs.FileInfo]:
    flat = stores.is_flat(filesystem)  # then all files below at once
    selector = pafs.FileSelector(folder, allow_not_found=True, recursive=flat)
    infos = retried(lambda: filesystem.get_file_info(selector), uri)
    return [i for i in infos if i.path != folder and not (flat and i.type == pafs.FileType.Directory)]


def _glob_pattern(glob: str) -> re.Pattern[str]:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", glob)
    plain, special = tokens[::2], tokens[1::2]
    translated = [wild.get(token) or token.replace("[!", "[^") for token in special] + [""]
    return re.compile("".join(re.escape(p) + t for p, t in zip(plain, translated, strict=True)))


def _read_list(uri: str) -> Iterator[tuple[str, int]]:
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecoError(f"{uri}: the list of images cannot be read: {reason(error)}") from error
    return (
        (tables.beside(uri, line), -1) for line in map(str.strip, lines) if line and not line.startswith("#")
    )
