"""Pseudo-labels: what the label stage writes and training reads.

- frames: `frames/<shard>.parquet`, FRAMES_SCHEMA, the images at the size they are trained at; `rejected/`
- pseudo-labels, one artifact a vocabulary: `labels/<shard>.parquet`, LABELS_SCHEMA, its rows those of the frames'
  shard; in the file's metadata `pixels`, how many have each label id, as a JSON list; `calibration.json`
"""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

FRAMES_KIND, LABELS_KIND = "frames", "pseudo-labels"
IGNORE = 255  # in label maps: counts for nothing
MAX_LABELS = 255

# frame: JPEG of the upright image, short side near train.image_size. width, height: of the original, pixels.
FRAMES_SCHEMA = pa.schema(
    [("uri", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("frame", pa.binary())]
)
# All three are 8-bit PNGs. label: label ids or IGNORE, of the frame's size. score: the winner's x 255. soft: every
# label's probability x 255, the labels' maps one below the other, each over the whole frame at the models' resolution;
# null where the labels are ReCo's own.
LABELS_SCHEMA = pa.schema(
    [("uri", pa.string()), ("label", pa.binary()), ("score", pa.binary()), ("soft", pa.binary())]
)


def encode(values: np.ndarray) -> bytes:
    """uint8 (H, W) -> PNG."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """An encoded frame or label map -> uint8 (H, W, 3) or (H, W)."""
    return np.asarray(Image.open(io.BytesIO(data)))
