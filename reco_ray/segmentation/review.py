"""Chooses masks for a person to look at: a random sample, and by concept those that the model is least sure of."""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from reco_ray.contents import MasksContent
from reco_ray.errors import MissingError
from reco_ray.files import artifacts, storage
from reco_ray.files.read_ahead import prefetched
from reco_ray.segmentation.verdicts import Sample

LEAST_SHARE = 0.001  # of an image; smaller masks are left out, as nobody can judge them
_COLUMNS = ["uri", "name", "width", "height", "label", "concept", "area", "score"]


@dataclass(frozen=True)
class ReviewItem:
    """The mask of a concept in an image.

    Attributes:
        row: of REGIONS_SCHEMA, without `mask` and `rle`.
        sample: why it was chosen.
        others: the rows of the other labels of the image.
    """

    row: dict[str, Any]
    sample: Sample
    others: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Review:
    """Masks to look at.

    Attributes:
        items: the random sample first, then concept by concept the masks that the model is least sure of.
        masks: number of masks of concepts that the artifact has.
    """

    items: list[ReviewItem]
    masks: int


def choose_masks(
    masks: str, manifest: artifacts.Manifest[MasksContent], *, sample: int, unsure: int, seed: int
) -> Review:
    """Chooses masks; reads the table of regions file by file.

    Args:
        masks: URI of the artifact.
        manifest: its own.
        sample: number of masks in the random sample; each mask is as likely as any other.
        unsure: number of the others, shared evenly among concepts, from the lowest score.
        seed: of the sample; the same whatever the order of the files.

    Raises:
        MissingError: there is no mask of a concept.
    """
    drawn: list[tuple[int, str, dict[str, Any]]] = []  # heaps of negative keys: the largest key leaves first
    lowest: dict[str, list[tuple[float, str, dict[str, Any]]]] = {}
    count = 0
    for row in _rows(masks):
        if row["concept"] == "background" or row["area"] < LEAST_SHARE * row["width"] * row["height"]:
            continue
        count += 1
        key = f"{seed} {row['label']} {row['uri']}"
        draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        _keep(drawn, (-draw, key, row), sample)
        _keep(lowest.setdefault(row["concept"], []), (-row["score"], key, row), unsure + sample)
    if not count:
        raise MissingError(f"{masks}: has no mask of a concept: nothing is to be reviewed")
    random = [row for _, _, row in sorted(drawn, key=lambda each: -each[0])]
    chosen = {(row["uri"], row["label"]) for row in random}
    ranked = {
        concept: [row for _, _, row in sorted(heap, key=lambda each: -each[0]) if _key(row) not in chosen]
        for concept, heap in lowest.items()
    }
    items = [ReviewItem(row, "random") for row in random]
    items += [ReviewItem(row, "unsure") for row in _shared(ranked, unsure, manifest.content.labels)]
    return Review(_with_others(masks, items), count)


def _rows(masks: str) -> Iterator[dict[str, Any]]:
    folder = storage.join(masks, "regions")
    files = [storage.join(folder, name) for name in storage.list_names(folder, ".parquet")]
    for table in prefetched(lambda file: storage.read_table(file, _COLUMNS), files):
        yield from table.to_pylist()


def _keep(heap: list[Any], entry: tuple[Any, ...], most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, entry)
    elif most:
        heapq.heappushpop(heap, entry)


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["uri"], row["label"]


def _shared(ranked: dict[str, list[dict[str, Any]]], count: int, labels: list[str]) -> list[dict[str, Any]]:
    """Takes one mask of every concept in turn, until there are `count`; ordered by concept, then as ranked."""
    order = [label for label in labels if ranked.get(label)]
    taken: dict[str, list[dict[str, Any]]] = {label: [] for label in order}
    left = count
    while left and any(len(taken[label]) < len(ranked[label]) for label in order):
        for label in order:
            if left and len(taken[label]) < len(ranked[label]):
                taken[label].append(ranked[label][len(taken[label])])
                left -= 1
    return [row for label in order for row in taken[label]]


def _with_others(masks: str, items: list[ReviewItem]) -> list[ReviewItem]:
    """Adds what else the images of the items show; reads the table once more."""
    wanted = {item.row["uri"] for item in items}
    found: dict[str, list[dict[str, Any]]] = {uri: [] for uri in wanted}
    for row in _rows(masks):
        if row["uri"] in wanted:
            found[row["uri"]].append(row)
    return [
        ReviewItem(
            item.row,
            item.sample,
            sorted(
                (row for row in found[item.row["uri"]] if row["label"] != item.row["label"]),
                key=lambda row: -row["area"],
            ),
        )
        for item in items
    ]
