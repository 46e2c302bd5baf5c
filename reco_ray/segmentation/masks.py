"""The masks artifact: what a segmentation writes for every image, and how others read it.

- `masks/<name>.png`: label ids; 8-bit with a palette, 16-bit grey above 256 labels
- `overlays/<name>.jpg`: to look at
  (`names.py` says what an image's name is: the mask of `street/x.jpg` is `masks/street/x.jpg.png`)
- `regions/<shard>.parquet`: REGIONS_SCHEMA, a row for every label present in an image
- `rejected/<shard>.parquet`: `uri`, `reason`
"""

import io

import numpy as np
import pyarrow as pa
from PIL import Image
from pycocotools import mask as coco_mask

KIND = "masks"
# uri: the image. name: without suffix, for both files. mask: the mask's file, from the artifact's directory.
# rle: COCO's compressed run lengths (column-major), of size (height, width). area: pixels. score: mean over the region.
REGIONS_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("name", pa.string()),
        ("mask", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("label", pa.int32()),
        ("concept", pa.string()),
        ("area", pa.int64()),
        ("score", pa.float32()),
        ("rle", pa.string()),
    ]
)


def mask_file(name: str) -> str:
    """Where the mask of that name lies, from the artifact's directory."""
    return f"masks/{name}.png"


def encode_png(labels: np.ndarray, colours: np.ndarray) -> bytes:
    """Label ids (H, W) -> PNG: indexed with `colours` (m, 3) up to 256 labels, 16-bit grey above."""
    buffer = io.BytesIO()
    if len(colours) <= 256:
        image = Image.fromarray(labels.astype(np.uint8)).convert("L")
        image.putpalette(colours.reshape(-1).tolist())
        image.save(buffer, "PNG", optimize=False)
    else:
        Image.fromarray(labels.astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """PNG of label ids -> int32 (H, W)."""
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.int32)


def regions(labels: np.ndarray, scores: np.ndarray) -> list[dict[str, object]]:
    """One entry a label that is present: `label`, `area`, `score`, `rle`.

    Args:
        labels: int (H, W). scores: float32 (H, W), of the winning label.
    """
    found = statistics(labels, scores)
    runs = run_lengths(labels, [label for label, _, _ in found])
    return [
        {"label": label, "area": area, "score": score, "rle": rle}
        for (label, area, score), rle in zip(found, runs, strict=True)
    ]


def statistics(labels: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
    """(label, area in pixels, mean score) of every label that is present; arguments as for `regions`."""
    flat = labels.reshape(-1)
    areas = np.bincount(flat)
    totals = np.bincount(flat, weights=scores.reshape(-1))
    return [(int(n), int(areas[n]), float(totals[n] / areas[n])) for n in np.flatnonzero(areas)]


def run_lengths(labels: np.ndarray, present: list[int]) -> list[str]:
    """COCO's compressed run lengths of each label of `present`; labels: int (H, W)."""
    columns = np.asfortranarray(labels)  # once: COCO counts down the columns
    return [coco_mask.encode((columns == label).view(np.uint8))["counts"].decode() for label in present]
