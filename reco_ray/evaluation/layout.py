"""Folder layouts as patterns: which image belongs to which label file.

A pattern is a path below the data set, `leftImg8bit/val/{city}/{name}_leftImg8bit.png`. A `{field}` stands for any part
of one file's or folder's name, a `*` as well; image and label belong together if their fields agree.
"""

import re
from typing import Literal, NamedTuple

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict

from reco_ray import storage
from reco_ray.corpus.kinds import IMAGE_SUFFIXES, is_junk
from reco_ray.errors import RecoError, reason
from reco_ray.storage import join

Fields = tuple[tuple[str, str], ...]


class Layout(BaseModel):
    """One way in which a data set lies in folders.

    split: a text file that lists the `{name}` of the images to take; without it all are taken. extra: the side on which
    files without a partner are none of the benchmark's business; with a split, both are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str
    labels: str
    split: str | None = None
    extra: Literal["images", "labels"] | None = None

    def missing(self, data: str) -> str | None:
        """The first folder or file of this layout that is not there; None if all are."""
        places = [_folder(self.images), _folder(self.labels), *([self.split] if self.split else [])]
        uris = [join(data, place) for place in places]
        return next((uri for uri in uris if not storage.exists(uri)), None)


class Pair(NamedTuple):
    """URIs of an image and its label file, and the fields that both have."""

    image: str
    label: str
    fields: dict[str, str]


def find_pairs(data: str, layout: Layout) -> list[Pair]:
    """All pairs of a data set, in the order of their names.

    Raises:
        RecoError: a file without its partner, two for one, or no files; names it.
    """
    images, labels = _files(data, layout.images), _files(data, layout.labels)
    if layout.split:
        split = join(data, layout.split)
        wanted: dict[Fields, str] = {(("name", name),): split for name in _lines(split)}
    else:
        wanted = {} if layout.extra == "images" else dict(images)
        wanted |= {} if layout.extra == "labels" else labels
    if not wanted:
        raise RecoError(f"{join(data, layout.images)}: no such files: is --data right?")
    for fields, because in wanted.items():
        for found, pattern in ((images, layout.images), (labels, layout.labels)):
            if fields not in found:
                missing = join(data, pattern.format(**dict(fields)))
                raise RecoError(f"{missing}: missing, but {because} asks for it")
    return [Pair(images[fields], labels[fields], dict(fields)) for fields in sorted(wanted)]


def _files(data: str, pattern: str) -> dict[Fields, str]:
    """Fields -> URI of every file that fits a pattern."""
    folder = join(data, _folder(pattern))
    expression = re.escape(pattern.removeprefix(_folder(pattern) + "/"))
    expression = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", expression).replace(r"\*", "[^/]*")
    filesystem, root = storage.resolve(folder)
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    found: dict[Fields, str] = {}
    for info in sorted(filesystem.get_file_info(selector), key=lambda info: info.path):
        relative = info.path[len(root) :].lstrip("/")
        match = re.fullmatch(expression, relative)
        if not match or info.type != pafs.FileType.File or not _is_meant(relative, pattern):
            continue
        fields = tuple(sorted(match.groupdict().items()))
        if fields in found:
            raise RecoError(
                f"{join(folder, relative)}: {found[fields]} has the same name: remove one of them"
            )
        found[fields] = join(folder, relative)
    return found


def _is_meant(relative: str, pattern: str) -> bool:
    """Whether a file that fits a pattern is an image at all: not what systems and programs leave beside images."""
    name = relative.rpartition("/")[2]
    return not is_junk(name) and (not pattern.endswith(".*") or name.lower().endswith(IMAGE_SUFFIXES))


def _folder(pattern: str) -> str:
    """The part of a pattern before its first field, up to a slash."""
    return pattern.partition("{")[0].rpartition("/")[0]


def _lines(uri: str) -> list[str]:
    try:
        text = storage.read_bytes(uri).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RecoError(f"{uri}: the list of images cannot be read: {reason(error)}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
