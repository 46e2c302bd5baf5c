"""Connected components of label maps, and their run lengths."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pycocotools import mask as coco_mask
from skimage import measure


@dataclass(frozen=True)
class Instance:
    """A connected component of one label.

    Attributes:
        label: its label id.
        area: pixels.
        box: left, top, width and height, pixels.
        counts: COCO's compressed run lengths (column-major) of a mask of the whole image.
        crop: its pixels inside the box, bool (height, width).
    """

    label: int
    area: int
    box: tuple[int, int, int, int]
    counts: str
    crop: np.ndarray


def find_instances(labels: np.ndarray, first: int, min_area: int = 0) -> list[Instance]:
    """The connected components of every label, by label and then by position; neighbours may touch at a corner.

    Args:
        labels: int (H, W).
        first: smaller label ids have no instances.
        min_area: smaller components are left out, pixels.
    """
    wanted = np.where(labels >= first, labels - first + 1, 0)
    components, count = measure.label(wanted, background=0, return_num=True, connectivity=2)
    if not count:
        return []
    height, width = labels.shape
    runs = coco_mask.frPyObjects(component_runs(components, count), height, width)
    found = []
    for run, region in zip(runs, measure.regionprops(components), strict=True):
        if region.area < min_area:
            continue
        top, left, bottom, right = region.bbox
        row, column = np.argwhere(region.image)[0]
        label = int(labels[top + row, left + column])
        box = (left, top, right - left, bottom - top)
        found.append(Instance(label, int(region.area), box, run["counts"].decode(), region.image))
    return sorted(found, key=lambda instance: (instance.label, instance.box[1], instance.box[0]))


def component_runs(components: np.ndarray, count: int) -> list[dict[str, list[int]]]:
    """COCO's uncompressed run lengths of every component, in one pass over the pixels.

    Args:
        components: ids from 1 to `count`, 0 elsewhere, int (H, W).
        count: number of components.

    Returns:
        `size` [H, W] and `counts` of each component, in the order of the ids.
    """
    pixels = components.ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    starts, ends = np.append(0, edges), np.append(edges, pixels.size)
    ids = pixels[starts]
    order = np.argsort(ids, kind="stable")
    bounds = np.searchsorted(ids[order], np.arange(1, count + 2))
    found = []
    for first, last in pairwise(bounds):
        own = order[first:last]
        ends_and_starts = np.column_stack([starts[own], ends[own]]).ravel()
        counts = np.diff(ends_and_starts, prepend=0, append=pixels.size)
        found.append({"size": list(components.shape), "counts": counts.tolist()})
    return found
