"""Folder layouts: finds the label file of each image by patterns.

A pattern is a path below the data set, such as `leftImg8bit/val/{city}/{name}_leftImg8bit.png`. A `{field}` or a `*`
matches any part of one path component. An image and a label file form a pair if their fields are equal.
"""

import re
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from reco_ray.corpus.kinds import IMAGE_SUFFIXES, is_junk
from reco_ray.errors import MissingError, UnreadableError, file_error, reason
from reco_ray.files import storage
from reco_ray.files.storage import join

Fields = tuple[tuple[str, str], ...]


class Layout(BaseModel):
    """A folder layout.

    Attributes:
        images: Pattern of the images.
        labels: Pattern of the label files.
        split: Text file with the `{name}` of the images to use, one per line; None for all.
        extra: Side on which files without a counterpart are ignored; with a split they are ignored on both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str
    labels: str
    split: str | None = None
    extra: Literal["images", "labels"] | None = None

    def missing(self, data: str) -> str | None:
        """URI of the first folder or file of this layout that does not exist; None if all exist."""
        places = [_folder(self.images), _folder(self.labels), *([self.split] if self.split else [])]
        uris = [join(data, place) for place in places]
        return next((uri for uri in uris if not storage.exists(uri)), None)


class Pair(NamedTuple):
    """URIs of an image and its label file, and their common fields."""

    image: str
    label: str
    fields: dict[str, str]


def find_pairs(data: str, layout: Layout) -> list[Pair]:
    """All pairs of a data set, sorted by their fields.

    Raises:
        RecoError: If a file has no counterpart or two, or there are no files; the message names it.
    """
    images, labels = _files(data, layout.images), _files(data, layout.labels)
    if layout.split:
        split = join(data, layout.split)
        wanted: dict[Fields, str] = {(("name", name),): split for name in _lines(split)}
    else:
        wanted = {} if layout.extra == "images" else dict(images)
        wanted |= {} if layout.extra == "labels" else labels
    if not wanted:
        raise MissingError(f"{join(data, layout.images)}: no such files: check --data")
    for fields, because in wanted.items():
        for found, pattern in ((images, layout.images), (labels, layout.labels)):
            if fields not in found:
                missing = join(data, pattern.format(**dict(fields)))
                raise MissingError(f"{missing}: missing, but {because} requires it")
    return [Pair(images[fields], labels[fields], dict(fields)) for fields in sorted(wanted)]


def _files(data: str, pattern: str) -> dict[Fields, str]:
    folder = join(data, _folder(pattern))
    expression = re.escape(pattern.removeprefix(_folder(pattern) + "/"))
    expression = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", expression).replace(r"\*", "[^/]*")
    found: dict[Fields, str] = {}
    for relative in storage.list_tree(folder):
        match = re.fullmatch(expression, relative)
        if not match or not _is_image(relative, pattern):
            continue
        fields = tuple(sorted(match.groupdict().items()))
        if fields in found:
            raise UnreadableError(
                f"{join(folder, relative)}: {found[fields]} has the same name: remove one of them"
            )
        found[fields] = join(folder, relative)
    return found


def _is_image(relative: str, pattern: str) -> bool:
    """Whether a file that matches a pattern is an image, not a file that the system or a program created beside it."""
    name = relative.rpartition("/")[2]
    return not is_junk(name) and (not pattern.endswith(".*") or name.lower().endswith(IMAGE_SUFFIXES))


def _folder(pattern: str) -> str:
    """The folders of a pattern before its first field."""
    return pattern.partition("{")[0].rpartition("/")[0]


def _lines(uri: str) -> list[str]:
    try:
        text = storage.read_bytes(uri).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise file_error(f"{uri}: the list of images cannot be read: {reason(error)}", error) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
