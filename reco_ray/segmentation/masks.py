"""Files of the masks artifact.

- `masks/<name>.png`: label ids; 8-bit with a palette, 16-bit grey above 256 labels
- `overlays/<name>.jpg`: mask over the image
  (names are defined in `names.py`: the mask of `street/x.jpg` is `masks/street/x.jpg.png`)
- `images.parquet`: every image, the name of its mask and its part (`image_parts.py`)
- `sample.safetensors`: dense features of some of the images, over which scores are calibrated, see
  `models.feature_sample`; absent if the corpus' sample of the ReferenceBank is used
- `report/index.html`: the page about them, if `segment` made them
- `regions/<part>.parquet`: REGIONS_SCHEMA, one row per image and label in it
- `rejected/<part>.parquet`: `uri`, `reason`
"""

import io
from typing import TypedDict

import numpy as np
import pyarrow as pa
from PIL import Image
from pycocotools import mask as coco_mask

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

_MOST_IN_A_BYTE = 256


def mask_file(name: str) -> str:
    """Path of a mask inside the artifact."""
    return f"masks/{name}.png"


def overlay_file(name: str) -> str:
    """Where the overlay of that name lies, from the artifact's directory."""
    return f"overlays/{name}.jpg"


def encode_png(labels: np.ndarray, colours: np.ndarray) -> bytes:
    """Encodes label ids (H, W) as PNG: with the palette `colours` (m, 3) up to 256 labels, else 16-bit grey."""
    if len(colours) > _MOST_IN_A_BYTE:
        return encode_grey_png(labels, len(colours))
    buffer = io.BytesIO()
    image = Image.fromarray(labels.astype(np.uint8)).convert("L")
    image.putpalette(colours.reshape(-1).tolist())
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def encode_grey_png(labels: np.ndarray, count: int) -> bytes:
    """Encodes label ids (H, W) below `count` as a grey PNG, of 8 bits if that is enough, else of 16."""
    buffer = io.BytesIO()
    kind = np.uint8 if count <= _MOST_IN_A_BYTE else np.uint16
    Image.fromarray(labels.astype(kind)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """Decodes a PNG of label ids: int32 (H, W)."""
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.int32)


class Region(TypedDict):
    """The columns of REGIONS_SCHEMA that describe one region."""

    label: int
    area: int
    score: float
    rle: str


def regions(labels: np.ndarray, scores: np.ndarray) -> list[Region]:
    """Describes the region of each label in an image.

    Args:
        labels: int (H, W).
        scores: of the labels, float32 (H, W).
    """
    found = statistics(labels, scores)
    runs = run_lengths(labels, [label for label, _, _ in found])
    return [
        {"label": label, "area": area, "score": score, "rle": rle}
        for (label, area, score), rle in zip(found, runs, strict=True)
    ]


def statistics(labels: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
    """Label, area in pixels and mean score of each label in an image; arguments as for `regions`."""
    flat = labels.reshape(-1)
    areas = np.bincount(flat)
    totals = np.bincount(flat, weights=scores.reshape(-1))
    return [(int(n), int(areas[n]), float(totals[n] / areas[n])) for n in np.flatnonzero(areas)]


def run_lengths(labels: np.ndarray, present: list[int]) -> list[str]:
    """COCO's compressed run lengths of each label in `present`; `labels` is int (H, W)."""
    columns = np.asfortranarray(labels)  # once for all labels: COCO's order is column-major
    return [coco_mask.encode((columns == label).view(np.uint8))["counts"].decode() for label in present]
