"""What an answer of /v1/segment says, read independently of the page and of the client: by pycocotools."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def label_map(answer: dict[str, Any]) -> np.ndarray:
    """int32 (H, W), -1 where no concept lies."""
    labels = np.full((answer["height"], answer["width"]), -1, np.int32)
    for concept in answer["concepts"]:
        labels[region(concept)] = concept["label"]
    return labels


def region(concept: dict[str, Any]) -> np.ndarray:
    """bool (H, W)."""
    rle = {"size": concept["rle"]["size"], "counts": concept["rle"]["counts"].encode()}
    return coco_mask.decode(rle).astype(bool)


def rgb(colour: str) -> np.ndarray:
    """ "#rrggbb" -> uint8 (3,)."""
    return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)], np.uint8)


def painted(answer: dict[str, Any]) -> np.ndarray:
    """uint8 (H, W, 4): every concept in its colour, the rest transparent."""
    pixels = np.zeros((answer["height"], answer["width"], 4), np.uint8)
    for concept in answer["concepts"]:
        pixels[region(concept)] = [*rgb(concept["colour"]), 255]
    return pixels


def inner_point(concept: dict[str, Any]) -> tuple[float, float]:
    """A place (x, y) in [0, 1] inside a concept's region, as far from its edges as it gets."""
    from scipy.ndimage import distance_transform_edt

    mask = region(concept)
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), mask.shape)
    return (column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0]
