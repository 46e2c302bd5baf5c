"""Which files under a folder are taken for images or containers of images; the others are counted."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from reco_ray.corpus.containers import is_container
from reco_ray.corpus.kinds import (
    ARCHIVE_SUFFIXES,
    HEAD,
    IMAGE_SUFFIXES,
    OTHER_PICTURES,
    begins_as_picture,
    may_be_picture,
    suffix_of,
)
from reco_ray.corpus.left_out import Kind, LeftOut
from reco_ray.corpus.walk import Found, walk
from reco_ray.files import storage


@dataclass(frozen=True)
class Glob:
    """A pattern of paths. `*` and `?` stay inside one folder, `**/` spans any number.

    root: the folder that it begins in. names_suffix: it spells the suffix of the files it wants, whatever that is.
    all_names: it spells a dot at the beginning of a name, so it wants hidden ones. depth: slashes in paths that fit,
    None = any number.
    """

    root: str
    pattern: re.Pattern[str]
    names_suffix: bool
    all_names: bool
    depth: int | None

    @classmethod
    def parse(cls, glob: str) -> "Glob":
        first = re.search(r"[*?[]", glob)
        root = (glob[: first.start()] if first else glob).rpartition("/")[0]
        wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", glob)
        plain, special = tokens[::2], tokens[1::2]
        translated = [wild.get(token) or token.replace("[!", "[^") for token in special] + [""]
        pattern = "".join(re.escape(p) + t for p, t in zip(plain, translated, strict=True))
        names_suffix = re.search(r"\.\w+$", plain[-1]) is not None
        depth = None if "**" in glob else glob.count("/")
        return cls(root, re.compile(pattern, re.DOTALL), names_suffix, "/." in glob[len(root) :], depth)

    def reaches(self, folder: str) -> bool:
        """Whether what lies in a folder may fit."""
        return self.depth is None or self.depth > folder.count("/")


def choose(source: str | Glob, left_out: LeftOut) -> Iterator[tuple[str, int]]:
    """URI and size (-1 = unknown) of every file of a source that is an image or holds images.

    What is named like one and cannot be read is among them, and so is a folder that cannot be listed: they are rejected
    where they are read.

    Args:
        source: a folder, a file, or a glob.
        left_out: counts the others.

    Raises:
        RecoError: as `walk`.
    """
    glob = source if isinstance(source, Glob) else None
    root = glob.root if glob else str(source)
    local = storage.local_path(root) is not None
    found = walk(root, all_names=glob is not None and glob.all_names, artifacts=glob is not None)
    for uri, size, kind in found:
        if kind in (Found.OWN, Found.CLOSED) and glob and not glob.reaches(uri):
            continue
        if kind is Found.OWN:
            left_out.add(Kind.OWN, uri[len(root) :].strip("/"))
        elif kind is Found.CLOSED:
            yield uri, -1
        elif glob and not glob.pattern.fullmatch(uri):
            continue
        elif kind is Found.JUNK:
            left_out.add(Kind.JUNK, uri.rpartition("/")[2])
        elif kind is Found.LINK:
            left_out.add(Kind.LINKS, uri[len(root) :].strip("/"))
        elif _is_taken(uri, kind, glob is not None and glob.names_suffix, local):
            yield uri, size
        else:
            left_out.add(*_why_not(uri, kind, local))


def _is_taken(uri: str, kind: Found, named: bool, local: bool) -> bool:
    if named or uri.lower().endswith(IMAGE_SUFFIXES) or is_container(uri):
        return True
    if kind is Found.BROKEN:
        return not suffix_of(uri)
    return kind is Found.FILE and local and may_be_picture(uri) and _is_picture(uri)


def _is_picture(uri: str) -> bool:
    """Whether a file of another suffix, or of none, begins as an image does. One that cannot be read may be one."""
    try:
        with open(storage.local_path(uri) or uri, "rb") as file:
            return begins_as_picture(file.read(HEAD), tiff=not suffix_of(uri))
    except OSError:
        return not suffix_of(uri)


def _why_not(uri: str, kind: Found, local: bool) -> tuple[Kind, str]:
    suffix = suffix_of(uri)
    if kind is Found.SPECIAL:
        return Kind.SPECIAL, uri.rpartition("/")[2]
    if suffix in OTHER_PICTURES:
        return Kind.PICTURES, suffix
    if uri.lower().endswith(ARCHIVE_SUFFIXES):
        return Kind.ARCHIVES, suffix
    if not suffix and not local:
        return Kind.NO_SUFFIX, ""
    return Kind.FILES, suffix
