"""The reference of a concept from its exemplars: features, weights, co-segmentation. Torch only."""

import torch
import torch.nn.functional as F

from reco_ray.config import ReferenceSettings
from reco_ray.cosegmentation.attention import language_attention
from reco_ray.cosegmentation.context import context_weights
from reco_ray.cosegmentation.cosegment import Cosegmentation, cosegment
from reco_ray.models.dense import DenseFeatures, DenseModels

_BATCH = 16  # images per forward pass; activations take about 100 MB at 448 px


def reference_from_pixels(
    models: DenseModels,
    pixels: torch.Tensor,
    text_embedding: torch.Tensor,
    context_references: torch.Tensor | None,
    settings: ReferenceSettings,
) -> Cosegmentation:
    """Co-segments the exemplars of one concept (ReCo, sections 3.2 and 3.3).

    Args:
        models: the dense models.
        pixels: uint8 (n, H, W, 3), in order of retrieval.
        text_embedding: (d,) of the dense language model.
        context_references: (r, c) unit rows, or None.
        settings: of the references.
    """
    encoded = [models.encode(batch) for batch in pixels.split(_BATCH)]
    features = DenseFeatures(torch.cat([e.visual for e in encoded]), torch.cat([e.language for e in encoded]))
    return reference_from_features(features, text_embedding, context_references, settings)


def reference_from_features(
    encoded: DenseFeatures,
    text_embedding: torch.Tensor,
    context_references: torch.Tensor | None,
    settings: ReferenceSettings,
) -> Cosegmentation:
    """As `reference_from_pixels`, with features that are already computed."""
    features = encoded.visual
    weights = torch.ones(len(features), *features.shape[2:], device=features.device)
    if settings.language_attention:
        attention = language_attention(encoded.language, text_embedding[None])
        weights = F.interpolate(attention, features.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    if context_references is not None:
        weights = weights * context_weights(features, context_references).prod(dim=1)
    return cosegment(features, weights, reduction=settings.reduction, pairing=settings.pairing)
