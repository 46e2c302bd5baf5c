"""Label Studio's brush masks: its run lengths, and the regions of a prediction.

The run lengths are those of https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack, over RGBA pixels: 32
bits for the number of values, 5 for the bits of a value less one, 4 times 4 for the sizes of lengths less one; then for
every run one bit (1 = a run, 0 = that many single values), two bits for the size of its length, the length less one,
and the value. The encoder of Label Studio's package is a loop over text, which takes seconds for a large mask.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

_SIZES = (3, 4, 8, 16)  # bits of a length
_VALUE = 8  # bits of a value
_LONGEST = 1 << _SIZES[-1]
_CHANNELS = 4
FROM, TO = "tag", "image"  # the names of the controls in `label_config`


def encode_brush(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask, bool (H, W), as the bytes that Label Studio keeps."""
    values = mask.ravel()
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.append(0, edges)
    lengths = np.diff(np.append(starts, values.size)) * _CHANNELS
    # A run that is longer than a length can say becomes several of the longest and one with the rest.
    pieces = -(-lengths // _LONGEST)
    ones = np.repeat(values[starts], pieces)
    runs = np.full(len(ones), _LONGEST, np.int64)
    runs[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    kinds = np.searchsorted(1 << np.array(_SIZES), runs)
    bits = np.array(_SIZES)[kinds]
    tokens = ((((1 << 2) | kinds) << bits) | (runs - 1)) << _VALUE | np.where(ones, 255, 0)
    widths = 3 + bits + _VALUE
    sizes = int("".join(f"{size - 1:04b}" for size in _SIZES), 2)
    tokens = np.concatenate([[values.size * _CHANNELS, (_VALUE - 1) << 16 | sizes], tokens])
    widths = np.concatenate([[32, 21], widths])
    left = (tokens << (32 - widths)).astype(">u4")
    written = np.unpackbits(left.view(np.uint8)).reshape(-1, 32)
    return np.packbits(written[np.arange(32) < widths[:, None]]).tolist()


def brush_region(
    mask: np.ndarray,
    concept: str,
    score: float | None,
    region_id: str,
    controls: tuple[str, str] = (FROM, TO),
) -> dict[str, Any]:
    """One region of a prediction.

    Args:
        mask: bool (H, W), of the size of the image.
        concept: its label.
        score: probability; None = unknown.
        region_id: any text, unique in the prediction.
        controls: names of the labels' and of the image's control in the project's configuration.
    """
    height, width = mask.shape
    region: dict[str, Any] = {
        "id": region_id,
        "type": "brushlabels",
        "from_name": controls[0],
        "to_name": controls[1],
        "origin": "prediction",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [concept]},
    }
    return region if score is None else {**region, "score": round(score, 4)}


def prediction(
    labels: np.ndarray,
    concepts: Mapping[int, str],
    scores: Mapping[int, float],
    model_version: str,
    controls: tuple[str, str] = (FROM, TO),
) -> dict[str, Any]:
    """The prediction for an image: one region for each concept, and the mean probability over all their pixels.

    Args:
        labels: label ids, int (H, W).
        concepts: the label ids to show, with their names.
        scores: label id -> probability; empty = there are none.
        model_version: what made the labels.
        controls: as `brush_region`.
    """
    areas = {label: int((labels == label).sum()) for label in concepts}
    present = [label for label, area in areas.items() if area]
    regions = [
        brush_region(labels == label, concepts[label], scores.get(label), f"{label:05d}", controls)
        for label in present
    ]
    found: dict[str, Any] = {"model_version": model_version, "result": regions}
    if scores and present:
        weights = [areas[label] for label in present]
        mean = np.average([scores[label] for label in present], weights=weights)
        found["score"] = round(float(mean), 4)
    return found
