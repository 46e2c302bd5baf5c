"""Scores and label maps from dense features and references (ReCo, Shin et al., NeurIPS 2022, section 3). Torch only.

A score is the product of two maps, each computed at its own resolution and then resized: the similarity of the location
to the concept's reference, and the language attention. Either can be left out, which gives the ablations "reference
only" and "language only".
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reco_ray.cosegmentation.attention import cosine_maps, language_attention

MAX_UINT8_CONCEPTS = 255  # the value 255 means "unlabelled" in masks; more concepts need int16


class LabelMap(NamedTuple):
    """The best concept at every pixel.

    Attributes:
        labels: (b, H, W), uint8 up to 255 concepts, else int16.
        scores: of the best concept, (b, H, W) float32 in (0, 1).
    """

    labels: Tensor
    scores: Tensor

    def statistics(self, concepts: int) -> tuple[Tensor, Tensor]:
        """Area and mean score of every concept in every image.

        Args:
            concepts: their number m.

        Returns:
            Areas in pixels (b, m) int64, and mean scores (b, m) float32, 0 where the area is 0.
        """
        images = len(self.labels)
        rows = torch.arange(images, device=self.labels.device).mul(concepts).view(-1, 1, 1)
        cells = (self.labels.long() + rows).flatten()
        areas = torch.bincount(cells, minlength=images * concepts)
        # float32 is not accurate enough for sums over millions of pixels.
        totals = torch.bincount(cells, weights=self.scores.flatten().double(), minlength=images * concepts)
        means = (totals / areas.clamp_min(1)).float()
        return areas.view(images, concepts), means.view(images, concepts)


def concept_scores(
    features: Tensor | None,
    references: Tensor | None,
    *,
    language_features: Tensor | None = None,
    text_embeddings: Tensor | None = None,
    output_size: tuple[int, int] | None = None,
    concepts: Tensor | None = None,
) -> Tensor:
    """Score of every concept at every pixel: sigmoid(cos(feature, reference)) times the language attention.

    All m maps are in memory at full size. `label_map` computes labels with less memory; to refine many concepts, pass
    those in the label map as `concepts`.

    Args:
        features: (b, c, h, w); need not be normalised. None, with `references`, for language only.
        references: (m, c), or (m, p, c) with p prototypes per concept, of which the nearest counts; need not be
            normalised.
        language_features: (b, d, h', w'); need not be normalised. None, with `text_embeddings`, for references only.
        text_embeddings: (m, d); need not be normalised.
        output_size: (H, W) in pixels. Default: the size of `features`, or else of `language_features`.
        concepts: int64 (k,), the concepts to score, in this order. Default: all m.

    Returns:
        (b, m, H, W) or (b, k, H, W), float32 in (0, 1).

    Raises:
        ValueError: shapes do not match, or all inputs are None.
    """
    maps = score_maps(features, references, language_features, text_embeddings)
    if concepts is not None:
        maps = [factor[:, concepts] for factor in maps]
    return _product_at(maps, _full_size(maps, output_size))


def label_map(
    features: Tensor | None,
    references: Tensor | None,
    *,
    language_features: Tensor | None = None,
    text_embeddings: Tensor | None = None,
    output_size: tuple[int, int] | None = None,
) -> LabelMap:
    """The argmax over `concept_scores`, the lowest index if concepts tie; arguments are the same.

    Memory does not grow with the number of concepts: one at a time is computed at full size.

    Raises:
        ValueError: as for `concept_scores`, or there is no concept.
    """
    maps = score_maps(features, references, language_features, text_embeddings)
    images, concepts = maps[0].shape[:2]
    if not concepts:
        raise ValueError("references and text_embeddings: no concept to label with")
    size = _full_size(maps, output_size)
    best = _product_at([each[:, :1] for each in maps], size)[:, 0]
    small = torch.uint8 if concepts <= MAX_UINT8_CONCEPTS else torch.int16
    labels = torch.zeros(images, *size, dtype=small, device=best.device)
    for concept in range(1, concepts):
        scores = _product_at([each[:, concept : concept + 1] for each in maps], size)[:, 0]
        labels.masked_fill_(scores > best, concept)
        best = torch.maximum(best, scores)
    return LabelMap(labels, best)


def score_maps(
    features: Tensor | None,
    references: Tensor | None,
    language_features: Tensor | None,
    text_embeddings: Tensor | None,
) -> list[Tensor]:
    """The one or two factors of the scores, (b, m, h, w) float32 in (0, 1), each at its own resolution.

    Arguments and errors are those of `concept_scores`.
    """
    if (features is None) != (references is None):
        raise ValueError("features and references: give both or neither")
    if (language_features is None) != (text_embeddings is None):
        raise ValueError("language_features and text_embeddings: give both or neither")
    maps = []
    if features is not None and references is not None:
        maps.append(torch.sigmoid(reference_cosines(features, references)))
    if language_features is not None and text_embeddings is not None:
        maps.append(_attention(language_features, text_embeddings))
    if not maps:
        raise ValueError("features, language_features: both are None, there is nothing to score with")
    if maps[0].shape[0] != maps[-1].shape[0]:
        raise ValueError(f"language_features: {maps[-1].shape[0]} images, features has {maps[0].shape[0]}")
    if maps[0].shape[1] != maps[-1].shape[1]:
        raise ValueError(f"text_embeddings: {maps[-1].shape[1]} concepts, references has {maps[0].shape[1]}")
    return maps


def _attention(language_features: Tensor, text_embeddings: Tensor) -> Tensor:
    """Language attention; of a concept without words, whose embedding is zero, the mean of the others.

    A constant would favour or hinder the concept everywhere; with the mean, its reference decides.
    """
    attention = language_attention(language_features, text_embeddings)
    worded = text_embeddings.any(1)
    if worded.any() and not worded.all():
        attention[:, ~worded] = attention[:, worded].mean(1, keepdim=True)
    return attention


def reference_cosines(features: Tensor, references: Tensor) -> Tensor:
    """Cosine of every location and every reference, of the nearest of several prototypes.

    Args:
        features: (b, c, h, w); need not be normalised.
        references: (m, c), or (m, p, c) with p prototypes; need not be normalised.

    Returns:
        (b, m, h, w) float32.

    Raises:
        ValueError: shapes do not match.
    """
    rows, prototypes = references, 1
    if references.ndim == 3:
        rows, prototypes = references.flatten(0, 1), references.shape[1]
    cosines = cosine_maps("features", features, "references", rows)
    return cosines.unflatten(1, (-1, prototypes)).amax(dim=2)


def _full_size(maps: list[Tensor], output_size: tuple[int, int] | None) -> tuple[int, int]:
    if output_size is None:
        return maps[0].shape[2], maps[0].shape[3]
    if len(output_size) != 2 or min(output_size) < 1:
        raise ValueError(f"output_size: must be (height, width), both at least 1, got {tuple(output_size)}")
    return output_size


def _product_at(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Resizes and multiplies the factors; like the released code, sigmoids are applied before resizing."""
    product = _resize(maps[0], size)
    for factor in maps[1:]:
        product = product * _resize(factor, size)
    return product


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
