"""The reference of a concept from its exemplars: features, weights, co-segmentation. Torch only."""

import torch
import torch.nn.functional as F

from reco_ray.config import ReferenceSettings
from reco_ray.corpus.regions import Region
from reco_ray.cosegmentation.attention import language_attention
from reco_ray.cosegmentation.context import context_weights
from reco_ray.cosegmentation.cosegment import Cosegmentation, cosegment
from reco_ray.cosegmentation.region_mask import allowed_locations
from reco_ray.models.dense import DenseFeatures, DenseModels

_BATCH = 16  # images per forward pass; activations take about 100 MB at 448 px


def reference_from_pixels(
    models: DenseModels,
    pixels: torch.Tensor,
    text_embedding: torch.Tensor,
    context_references: torch.Tensor | None,
    settings: ReferenceSettings,
    regions: list[Region | None] | None = None,
) -> Cosegmentation:
    """Co-segments the exemplars of one concept (ReCo, sections 3.2 and 3.3).

    Args:
        models: the dense models.
        pixels: uint8 (n, H, W, 3), in order of retrieval.
        text_embedding: (d,) of the dense language model; zero for a concept without words.
        context_references: (r, c) unit rows, or None.
        settings: of the references.
        regions: where the seed of each exemplar may lie; None for anywhere.
    """
    encoded = [models.encode(batch) for batch in pixels.split(_BATCH)]
    features = DenseFeatures(torch.cat([e.visual for e in encoded]), torch.cat([e.language for e in encoded]))
    return reference_from_features(features, text_embedding, context_references, settings, regions)


def reference_from_features(
    encoded: DenseFeatures,
    text_embedding: torch.Tensor,
    context_references: torch.Tensor | None,
    settings: ReferenceSettings,
    regions: list[Region | None] | None = None,
) -> Cosegmentation:
    """As `reference_from_pixels`, with features that are already computed."""
    features = encoded.visual
    size = (features.shape[2], features.shape[3])
    allowed = None if regions is None else allowed_locations(regions, size, features.device)
    weights = torch.ones(len(features), *size, device=features.device)
    if not text_embedding.any():
        weights = typicality(features, allowed)
    elif settings.language_attention:
        attention = language_attention(encoded.language, text_embedding[None])
        weights = F.interpolate(attention, size, mode="bilinear", align_corners=False)[:, 0]
    if context_references is not None:
        weights = weights * context_weights(features, context_references).prod(dim=1)
    return cosegment(
        features, weights, allowed=allowed, reduction=settings.reduction, pairing=settings.pairing
    )


def typicality(features: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """How typical every location is of what the exemplars show: takes the place of language attention without words.

    Without it the seed of a single exemplar would be the first location, since every location matches itself.

    Args:
        features: (n, c, h, w).
        allowed: bool (n, h, w), the locations that count; None for all.

    Returns:
        (n, h, w) float32 in (0, 1), as `language_attention` with the mean of the unit features in place of a text.
    """
    unit = F.normalize(features.float(), dim=1)
    rows = unit.permute(0, 2, 3, 1)
    mean = (rows.flatten(0, 2) if allowed is None else rows[allowed]).mean(0)
    return language_attention(unit, mean[None])[:, 0]
