"""Cosine similarity maps, and ReCo's language attention. Torch only."""

import torch
import torch.nn.functional as F
from torch import Tensor

LANGUAGE_SHARPNESS = 10.0  # ReCo's language attention is sigmoid(10 * cosine)


def language_attention(language_features: Tensor, text_embeddings: Tensor) -> Tensor:
    """Language attention of each concept at each location: sigmoid(10 * cos(feature, text)).

    Args:
        language_features: (b, d, h, w); need not be normalised.
        text_embeddings: (m, d); need not be normalised.

    Returns:
        (b, m, h, w) float32 in (0, 1); 0.5 where a vector is zero.

    Raises:
        ValueError: an argument has the wrong shape.
    """
    similarity = cosine_maps("language_features", language_features, "text_embeddings", text_embeddings)
    return torch.sigmoid(LANGUAGE_SHARPNESS * similarity)


def cosine_maps(features_name: str, features: Tensor, vectors_name: str, vectors: Tensor) -> Tensor:
    """Cosine similarity, 0 for zero vectors: (b, c, h, w) and (m, c) -> (b, m, h, w)."""
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(
            f"{features_name}: must be (b, c, h, w), none of them 0, got {tuple(features.shape)}"
        )
    channels = features.shape[1]
    if vectors.ndim != 2 or vectors.shape[1] != channels:
        raise ValueError(
            f"{vectors_name}: must be (m, {channels}) as {features_name}, got {tuple(vectors.shape)}"
        )
    # Without autocast: in half precision concepts tie, and the epsilon of normalize rounds to zero.
    with torch.autocast(features.device.type, enabled=False):
        features = F.normalize(features.float(), dim=1)
        return torch.einsum("bchw,mc->bmhw", features, F.normalize(vectors.float(), dim=1))
