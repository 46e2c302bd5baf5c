"""Outlines of instances as single polygons, from which the usual filling of polygons makes the same pixels again.

Vertices are pixels, as OpenCV traces and fills them: `cv2.fillPoly` includes the edge. A hole is joined to the outline
by a bridge along pixels of the instance, so that filling by the even-odd rule leaves it open.
"""

from collections.abc import Iterator

import cv2
import numpy as np

Point = tuple[int, int]


def outline(mask: np.ndarray) -> np.ndarray:
    """The polygon of one connected component.

    Args:
        mask: bool (H, W), its neighbours touching at sides or corners.

    Returns:
        int (n, 2), x and y of at least three vertices.
    """
    contours, hierarchy = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    traced = [[(int(x), int(y)) for x, y in contour[:, 0]] for contour in contours]
    is_hole = [parent >= 0 for parent in hierarchy[0, :, 3]]
    (outer,) = [points for points, hole in zip(traced, is_hole, strict=True) if not hole]
    holes = [points for points, hole in zip(traced, is_hole, strict=True) if hole]
    path = np.array(list(_joined(mask, outer, holes)))
    return _at_least_three(_without_collinear(path))


def _joined(mask: np.ndarray, outer: list[Point], holes: list[list[Point]]) -> Iterator[Point]:
    """The vertices of the outline and of all holes, each reached by a bridge and left by the same.

    The bridge runs from the leftmost pixel beside the hole to the left, as far as there is the instance: to a pixel of
    the outline, or of a hole whose leftmost pixel is further left. So every hole is reached.
    """
    starting: dict[Point, list[list[Point]]] = {}
    for hole in holes:
        first = min(range(len(hole)), key=lambda number: hole[number])
        column, row = hole[first]
        outside = np.flatnonzero(~mask[row, :column])
        left = int(outside[-1]) + 1 if outside.size else 0
        starting.setdefault((left, row), []).append([*hole[first:], *hole[: first + 1], (left, row)])
    waiting = [iter([*outer, outer[0]])]
    while waiting:
        point = next(waiting[-1], None)
        if point is None:
            waiting.pop()
            continue
        yield point
        waiting += [iter(hole) for hole in starting.pop(point, ())]


def _without_collinear(path: np.ndarray) -> np.ndarray:
    """Leaves out repeated vertices and those in the middle of a straight line."""
    path = path[np.append(True, (np.diff(path, axis=0) != 0).any(axis=1))]
    steps = np.sign(np.diff(path, axis=0))  # all lines are horizontal, vertical or diagonal
    turns = (steps[1:] != steps[:-1]).any(axis=1)
    return path[np.concatenate([[True], turns, [True]])] if len(path) > 2 else path


def _at_least_three(path: np.ndarray) -> np.ndarray:
    missing = max(0, 3 - len(path))
    return np.concatenate([path, np.repeat(path[-1:], missing, axis=0)])
