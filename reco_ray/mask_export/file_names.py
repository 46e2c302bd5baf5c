"""Paths for the files of an export, without suffix."""

import re
from collections import Counter

from reco_ray.corpus.kinds import IMAGE_SUFFIXES

_PLACE = re.compile(r"@\d+\+\d+$")  # of a member inside its tar


def stems(names: list[str], flat: bool) -> list[str]:
    """A path for the files of each image: the name of its mask without the suffix of an image.

    No two are the same, also where letters of both cases are: images that would share one keep their suffix in it, and
    if that is not enough get a number.

    Args:
        names: of masks, each once, as `segmentation.names` makes them.
        flat: whether folders become part of the file's name.
    """
    if flat:
        names = [name.replace("/", "_") for name in names]
    found = _told_apart([_without_suffix(name) for name in names], names)
    mark = "~"
    while len({name.casefold() for name in found}) < len(found):
        found = _told_apart(found, [f"{name}{mark}{number}" for number, name in enumerate(names, 1)])
        mark += "~"
    return found


def _told_apart(chosen: list[str], others: list[str]) -> list[str]:
    counts = Counter(name.casefold() for name in chosen)
    return [
        other if counts[name.casefold()] > 1 else name for name, other in zip(chosen, others, strict=True)
    ]


def _without_suffix(name: str) -> str:
    name = _PLACE.sub("", name)
    stem, dot, suffix = name.rpartition(".")
    return (
        stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES and not stem.endswith("/") and stem else name
    )
