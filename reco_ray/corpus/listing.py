"""Which files a source has: folders, globs, list files, tables of URIs; a container of images is one row.

At 100 million rows a Python list of tuples takes 20 GB; so rows go into Arrow columns while they are found, folder by
folder. What cannot be read (a link to nothing, a closed folder, a pipe) is a row too, and is rejected where it is read.
What is no image is counted, and said in one line.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.corpus import heic
from reco_ray.corpus.choice import Glob, choose
from reco_ray.corpus.containers import container_suffixes, containers, is_container, name_pattern
from reco_ray.corpus.counted_containers import open_containers, read_uris
from reco_ray.corpus.kinds import (
    ARCHIVE_SUFFIXES,
    IMAGE_SUFFIXES,
    LIST_SUFFIXES,
    suffix_of,
)
from reco_ray.corpus.left_out import Kind, LeftOut
from reco_ray.corpus.lists import read_list
from reco_ray.corpus.walk import escaped_name
from reco_ray.errors import MissingError, MissingPackageError, UnreadableError
from reco_ray.files import storage
from reco_ray.presentation.console import say_once

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
    left_out: what is there and was not taken, how many of each kind.
    """

    table: pa.Table
    root: str
    fingerprint: str
    left_out: dict[str, int] = field(default_factory=dict)


def list_files(uri: str, image_column: str | None = None) -> Listing:
    """Lists a folder (recursively), a glob, a list, Parquet, tars, videos, or one image, and says what it leaves out.

    A folder is its images, tars and tables; if it has none of these, its videos. A glob takes videos too, and one that
    spells a suffix every file that has it. Lists: text with one URI a line, CSV, TSV, JSON lines.

    Args:
        image_column: the column of tables that holds the images or names them, where the user says so.

    Raises:
        RecoError: nothing is there, or it holds no images.
    """
    uri = storage.absolute(uri)
    if not _is_utf8(uri):
        raise UnreadableError(f"{escaped_name(uri)}: the path is not UTF-8: rename it")
    root, left_out = uri, LeftOut()
    if uri.lower().endswith(LIST_SUFFIXES):
        root, table = uri.rpartition("/")[0], _table((name, -1) for name in read_list(uri, image_column))
        table = _opened(table, left_out, image_column, strict=True)
    elif uri.startswith(("http://", "https://")):
        root, table = uri.rpartition("/")[0], _table([(uri, -1)])
        table = _opened(table, left_out, image_column, strict=True)
    elif any(sign in uri for sign in "*?[") and not storage.exists(
        uri
    ):  # "trip [2024]" may be a folder's name
        glob = Glob.parse(uri)
        root = glob.root
        table = _sorted(_table(choose(glob, left_out)))
        table = _opened(table, left_out, image_column, strict=glob.names_suffix)
    else:
        table = _sorted(_table(choose(uri, left_out)))
        is_file = table.num_rows == 1 and table["uri"][0].as_py() == uri
        root = uri.rpartition("/")[0] if is_file and not is_container(uri) else uri
        table = table if is_file else _without_clips(table, left_out)
        table = _opened(table, left_out, image_column, strict=is_file)
    said = left_out.sentence(root)
    if not pc.any(pc.not_equal(table["images"], 0)).as_py():
        raise MissingError(_nothing(uri) + (f"; {said}" if said else ""))
    if not heic.available() and pc.all(pc.match_substring_regex(table["uri"], heic.PATTERN)).as_py():
        raise MissingPackageError(f"{uri}: all {table.num_rows:,} images are HEIC. {heic.MISSING}")
    _require_packages(table)
    if said:
        say_once(f"{uri}: {said}")
    return Listing(table, root, fingerprint(table), left_out.by_kind())


def _require_packages(table: pa.Table) -> None:
    for container in containers():
        require = getattr(container, "require", None)
        if require and pc.any(pc.match_substring_regex(table["uri"], name_pattern((container,)))).as_py():
            require()


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


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([("size", "ascending"), ("uri", "ascending")])


def _without_clips(table: pa.Table, left_out: LeftOut) -> pa.Table:
    """A folder without its videos, if it has anything else: one of photographs may hold a clip that nobody meant."""
    videos = name_pattern(tuple(each for each in containers() if each.KIND == "video"))
    clips = pc.match_substring_regex(table["uri"], videos)
    # What is named like nothing, of unknown size, is a link to nothing or a folder that is closed.
    unreadable = pc.and_(pc.equal(table["size"], UNKNOWN), pc.equal(table["images"], 1))
    if not pc.any(clips).as_py() or pc.all(pc.or_(clips, unreadable)).as_py():
        return table
    for clip in table["uri"].filter(clips).to_pylist():
        left_out.add(Kind.VIDEOS, suffix_of(clip))
    return table.filter(pc.invert(clips))


def _opened(table: pa.Table, left_out: LeftOut, image_column: str | None, *, strict: bool) -> pa.Table:
    """Tables of images get their number of rows; those of URIs are replaced by these, at the end."""
    files, addresses = open_containers(table, left_out, image_column, strict=strict)
    if not addresses:
        return files
    named = _table((each, -1) for name in addresses for each in read_uris(name, image_column))
    if files.num_rows:  # a table may well describe files that lie beside it
        named = named.filter(pc.invert(pc.is_in(named["uri"], value_set=files["uri"].combine_chunks())))
    return pa.concat_tables([files, named])


def _nothing(uri: str) -> str:
    if uri.lower().endswith(ARCHIVE_SUFFIXES) and not is_container(uri):
        tar = ".tar" in uri.lower() or uri.lower().endswith((".tgz", ".tbz2", ".txz"))
        what = "no image inside a compressed tar can be read by itself: decompress it to .tar"
        return f"{uri}: {what}" if tar else f"{uri}: archives are not read: unpack it"
    return f"{uri}: no images here (looked for {' '.join(IMAGE_SUFFIXES + container_suffixes())})"


def _is_utf8(uri: str) -> bool:
    try:
        uri.encode()
    except UnicodeEncodeError:
        return False
    return True
