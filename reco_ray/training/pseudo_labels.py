"""File formats of frames and pseudo-labels, written by the label stage and read by training.

- frames: `frames/<shard>.parquet`, FRAMES_SCHEMA, images at the size of training; `rejected/`; `samples/<digest>/`, the
  feature sample of the images, over which scores were calibrated
- pseudo-labels, one artifact per vocabulary: `labels/<shard>.parquet`, LABELS_SCHEMA, with the rows of the frames'
  shard, and in the metadata `pixels`, the number of pixels per label id as a JSON list
"""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

IGNORE = 255  # in label maps: ignored pixels
MAX_LABELS = 255
SOFT_STRIDE = 8  # side of a cell of the soft labels, in pixels of the segmented image

# frame: JPEG of the upright image, short side near train.image_size. width, height: of the original, pixels.
FRAMES_SCHEMA = pa.schema(
    [("uri", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("frame", pa.binary())]
)
# All three are 8-bit PNGs. label: label ids or IGNORE, at the size of the frame. score: of the label, x 255. soft:
# probabilities x 255, one map per label below each other, each of the whole image in cells of about SOFT_STRIDE pixels;
# null if scores are not calibrated.
LABELS_SCHEMA = pa.schema(
    [("uri", pa.string()), ("label", pa.binary()), ("score", pa.binary()), ("soft", pa.binary())]
)


def encode(values: np.ndarray) -> bytes:
    """Encodes uint8 (H, W) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Decodes a frame, uint8 (H, W, 3), or a label map, uint8 (H, W)."""
    return np.asarray(Image.open(io.BytesIO(data)))
