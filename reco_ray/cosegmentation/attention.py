"""Cosines of dense features with concept vectors, and ReCo's language attention. Torch only."""

import torch
import torch.nn.functional as F
from torch import Tensor

LANGUAGE_SHARPNESS = 10.0  # ReCo's language attention is sigmoid(10 * cosine)


def language_attention(language_features: Tensor, text_embeddings: Tensor) -> Tensor:
    """Where the language model sees each concept: sigmoid(10 * cos(feature, text)).

    Args:
        language_features: (b, d, h, w), of any scale.
        text_embeddings: (m, d), of any scale.

    Returns:
        (b, m, h, w) float32 in (0, 1); 0.5 where a vector is zero.

    Raises:
        ValueError: on shapes other than these.
    """
    similarity = cosine_maps("language_features", language_features, "text_embeddings", text_embeddings)
    return torch.sigmoid(LANGUAGE_SHARPNESS * similarity)


def cosine_maps(features_name: str, features: Tensor, vectors_name: str, vectors: Tensor) -> Tensor:
    """(b, c, h, w) and (m, c) -> cosine similarity (b, m, h, w), 0 with a zero vector."""
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(
            f"{features_name}: must be (b, c, h, w), none of them 0, got {tuple(features.shape)}"
        )
    channels = features.shape[1]
    if vectors.ndim != 2 or vectors.shape[1] != channels:
        raise ValueError(
            f"{vectors_name}: must be (m, {channels}) as {features_name}, got {tuple(vectors.shape)}"
        )
    # float32, even within autocast: in half precision concepts tie and the zero-vector guard rounds to zero.
    with torch.autocast(features.device.type, enabled=False):
        features = F.normalize(features.float(), dim=1)
        return torch.einsum("bchw,mc->bmhw", features, F.normalize(vectors.float(), dim=1))
