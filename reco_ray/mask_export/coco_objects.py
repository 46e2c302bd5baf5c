"""The objects of COCO's JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from reco_ray.mask_export.components import find_instances


def category_id(label: int, first: int) -> int:
    """The category of a label id: from 1, `first` being the label id of the first concept."""
    return label - first + 1


def categories(
    concepts: Sequence[str], colours: Sequence[Sequence[int]], *, panoptic: bool = False
) -> list[dict[str, Any]]:
    """The categories of the concepts; those of a panoptic file are all "stuff", as the masks know no instances."""
    found: list[dict[str, Any]] = [
        {"id": number, "name": name, "supercategory": ""} for number, name in enumerate(concepts, 1)
    ]
    if panoptic:
        for category, colour in zip(found, colours, strict=True):
            category |= {"isthing": 0, "color": list(colour)}
    return found


def image_object(number: int, file_name: str, size: tuple[int, int]) -> dict[str, Any]:
    """An image; size: height and width, pixels."""
    return {"id": number, "file_name": file_name, "width": size[1], "height": size[0]}


def instance_objects(
    labels: np.ndarray, first: int, scores: Mapping[int, float], image_id: int, min_area: int = 0
) -> Iterator[dict[str, Any]]:
    """An annotation, without its `id`, for every connected component of a concept.

    Args:
        labels: label ids, int (H, W).
        first: label id of the first concept.
        scores: label id -> probability; labels that are not in it get no score.
        image_id: of the image.
        min_area: smaller components are left out, pixels.
    """
    for instance in find_instances(labels, first, min_area):
        found: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_id(instance.label, first),
            "segmentation": {"size": list(labels.shape), "counts": instance.counts},
            "area": instance.area,
            "bbox": list(instance.box),
            "iscrowd": 0,
        }
        if instance.label in scores:
            found["score"] = round(scores[instance.label], 4)
        yield found
