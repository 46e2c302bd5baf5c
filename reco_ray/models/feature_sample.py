"""A small sample of dense features, over which the scores of any concepts can be calibrated. Torch only."""

import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from reco_ray.models.dense import DenseFeatures

LOCATIONS = 16  # per image; 64 images with 16 locations calibrate as well as all of 384 images
PATTERNS = 8  # images until the same places of the image are taken again
# Steps of a sequence that fills the unit square evenly (Roberts, "The Unreasonable Effectiveness of Quasirandom
# Sequences", 2018): 1 / g and 1 / g^2 with g^3 = g + 1.
_ROW_STEP, _COLUMN_STEP = 0.7548776662466927, 0.5698402909980532
_FIELDS = ("visual", "language", "logits", "image")


def sample_features(encoded: DenseFeatures, number: int) -> DenseFeatures:
    """Takes LOCATIONS locations of an image.

    Args:
        encoded: of one image.
        number: of the image in its sample. Images take different places, since frames of a camera show the same things
            in the same places.

    Returns:
        Features whose maps are (1, c, 1, LOCATIONS), `visual` as unit vectors, so that they fit float16 whatever their
        scale; `image` is of all locations.
    """

    def taken(maps: torch.Tensor) -> torch.Tensor:
        height, width = maps.shape[2:]
        steps = torch.arange(LOCATIONS, dtype=torch.double) + LOCATIONS * (number % PATTERNS)
        rows = ((0.5 + steps * _ROW_STEP) % 1 * height).long()
        columns = ((0.5 + steps * _COLUMN_STEP) % 1 * width).long()
        return maps.flatten(2)[:, :, None, (rows * width + columns).to(maps.device)]

    whole = encoded.language if encoded.logits is None else encoded.logits
    return DenseFeatures(
        F.normalize(taken(encoded.visual), dim=1),
        taken(encoded.language),
        None if encoded.logits is None else taken(encoded.logits),
        encoded.classes,
        whole.mean((2, 3)),
    )


def to_bytes(samples: list[DenseFeatures]) -> bytes:
    """Serialises the samples of all images, in float16."""
    tensors = {}
    for name in _FIELDS:
        found = [value for each in samples if (value := getattr(each, name)) is not None]
        if found:
            tensors[name] = torch.cat(found).half().cpu().contiguous()
    if samples[0].classes is not None:
        tensors["classes"] = samples[0].classes.float().cpu().contiguous()
    return save(tensors)


def from_bytes(data: bytes) -> DenseFeatures:
    """Reads a sample, as float32.

    Raises:
        Exception: the data is damaged; safetensors has no common base for its errors.
    """
    tensors = {name: value.float() for name, value in load(data).items()}
    return DenseFeatures(
        tensors["visual"],
        tensors["language"],
        tensors.get("logits"),
        tensors.get("classes"),
        tensors["image"],
    )
