"""A small sample of dense features, over which the scores of any concepts can be calibrated. Torch only."""

import torch
from safetensors.torch import load, save

from reco_ray.models.dense import DenseFeatures

LOCATIONS = (
    16  # of an image, evenly spaced; 64 images with 16 locations calibrate as well as all of 384 images
)
_FIELDS = ("visual", "language", "logits", "image")


def sample_features(encoded: DenseFeatures) -> DenseFeatures:
    """Takes LOCATIONS locations of every image: maps become (b, c, 1, LOCATIONS); `image` is of all locations."""

    def taken(maps: torch.Tensor) -> torch.Tensor:
        flat = maps.flatten(2)
        places = torch.linspace(0, flat.shape[2] - 1, LOCATIONS).round().long().to(maps.device)
        return flat[:, :, None, places]

    whole = encoded.language if encoded.logits is None else encoded.logits
    return DenseFeatures(
        taken(encoded.visual),
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
