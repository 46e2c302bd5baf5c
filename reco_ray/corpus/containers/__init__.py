"""Files that hold images: one module of this package for each format, or one of another package (`reco_ray.registry`).

An image in a container has an address that begins with the container's URI and `#`. What a module must and may have is
described by `Container`; nothing outside this package knows a format by name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, cast, runtime_checkable

from reco_ray.registry import CONTAINERS


@dataclass(frozen=True)
class ReadOptions:
    """What a user chose for the containers of a source.

    limit: larger images are refused, bytes. frames_per_second: sampling rate of videos. image_column: the column of
    tables that holds the images or names them, None = found by its name and type.
    """

    limit: int = 1 << 28
    frames_per_second: float = 1.0
    image_column: str | None = None


class Container(Protocol):
    """What a module that reads a format has.

    SUFFIXES: lower-case, with their dots. KIND: "archive" of image files, which tables beside it may describe; "table";
    or "video", which is taken from a folder only if nothing else is there, and costs much to go through.

    It may have those of `CountedContainer`, too, and `require()`, which raises MissingPackageError where a package that
    it needs is not installed.
    """

    SUFFIXES: tuple[str, ...]
    KIND: Literal["archive", "table", "video"]

    def members(self, uri: str, options: ReadOptions) -> Iterator[tuple[str, bytes | OSError]]:
        """(address, encoded image or why there is none) of every image, in an order that never changes.

        Raises:
            OSError, RecoError: the file cannot be opened.
        """

    def owns(self, address: str) -> bool:
        """Whether this is the address of an image in a container of this format."""

    def read(self, address: str, limit: int) -> bytes:
        """The encoded image at an address that `members` gave.

        Raises:
            OSError, RecoError, ValueError: it cannot be read.
        """


@runtime_checkable
class CountedContainer(Container, Protocol):
    """A format whose files say how many images they hold, without reading these; they may name images elsewhere."""

    def count(self, uri: str, options: ReadOptions) -> int | None:
        """How many images a file holds, None if it names images elsewhere.

        Raises:
            NoImageColumn: it is a table of other things.
            RecoError: it cannot be read.
        """

    def addresses(self, uri: str, options: ReadOptions) -> list[str]:
        """The addresses of `members`, without reading the images; raises as `count`."""

    def read_uris(self, uri: str, options: ReadOptions) -> Iterator[str]:
        """The images that a file names elsewhere, for which `count` gives None."""


@cache
def containers() -> tuple[Container, ...]:
    """All formats: archives, tables, videos.

    Raises:
        MissingPackageError: a package that offers one cannot be imported.
    """
    found = cast("list[Container]", [CONTAINERS.get(name) for name in CONTAINERS.names])
    return tuple(sorted(found, key=lambda container: container.KIND))


def container_of(uri: str) -> Container | None:
    """The format of a file, by its name."""
    lower = uri.lower()
    return next((each for each in containers() if lower.endswith(each.SUFFIXES)), None)


def owner_of(address: str) -> Container | None:
    """The format of the container in which an address lies, None if it lies in none."""
    if "#" not in address:
        return None
    for found in _before_hash().finditer(address):
        container = container_of(found[0])
        if container is not None and container.owns(address):
            return container
    return None


@cache
def container_suffixes() -> tuple[str, ...]:
    """The suffixes of all formats."""
    return tuple(suffix for each in containers() for suffix in each.SUFFIXES)


def is_container(uri: str) -> bool:
    """Whether a file holds images instead of being one: a tar, a table, a video."""
    return uri.lower().endswith(container_suffixes())


@cache
def container_pattern() -> str:
    """A regular expression for Arrow: what files of all formats are called."""
    return name_pattern(containers())


@cache
def name_pattern(formats: tuple[Container, ...]) -> str:
    """A regular expression for Arrow: what files of some formats are called."""
    suffixes = [suffix for each in formats for suffix in each.SUFFIXES]
    return f"(?i)({'|'.join(map(re.escape, suffixes))})$"


@cache
def _before_hash() -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, container_suffixes()))})(?=#)", re.IGNORECASE)
