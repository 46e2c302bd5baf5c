"""Segments images: encode, score, refine, argmax. Torch only."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from reco_ray.config import SegmentSettings
from reco_ray.models.dense import DenseFeatures
from reco_ray.segmentation.refine import refine
from reco_ray.segmentation.score import concept_scores, label_map

BACKGROUND = 0  # label id of the background, if there is one


class PixelEncoder(Protocol):
    """Interface of `DenseModels` that segmentation uses."""

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        """Encodes images: uint8 (b, H, W, 3) -> features."""


@dataclass(frozen=True)
class Targets:
    """Embeddings that every location is compared with.

    Attributes:
        references: (m, c), or (m, p, c) with p prototypes per target.
        text_embeddings: (m, d), of the dense language model.
        labels: label id of each target, int64 (m,); several may have that of the background.
        background: whether there is a background, which also takes locations with scores below the threshold.
    """

    references: torch.Tensor
    text_embeddings: torch.Tensor
    labels: torch.Tensor
    background: bool = False

    def to(self, device: str) -> "Targets":
        """Copies it to a device."""
        return replace(
            self,
            references=self.references.to(device),
            text_embeddings=self.text_embeddings.to(device),
            labels=self.labels.to(device),
        )

    def select(self, indices: torch.Tensor) -> "Targets":
        """The targets at `indices`, int64 (k,)."""
        return replace(
            self,
            references=self.references[indices],
            text_embeddings=self.text_embeddings[indices],
            labels=self.labels[indices],
        )


@dataclass(frozen=True)
class SegmentedImage:
    """The labels of one image.

    Attributes:
        labels: label ids, int64 (H, W).
        scores: of the labels, float32 (H, W).
    """

    labels: torch.Tensor
    scores: torch.Tensor


def segment(
    models: PixelEncoder,
    targets: Targets,
    pixels: torch.Tensor,
    output_sizes: list[tuple[int, int]],
    settings: SegmentSettings,
) -> list[SegmentedImage]:
    """Segments images of one size (ReCo, section 3.4).

    Args:
        models: the dense models.
        targets: of m labels.
        pixels: uint8 (b, H, W, 3), sides multiples of the encoder's stride.
        output_sizes: (height, width) of each result.
        settings: of the segmentation.
    """
    encoded = models.encode(pixels)
    results = []
    for number, size in enumerate(output_sizes):
        one = DenseFeatures(encoded.visual[number : number + 1], encoded.language[number : number + 1])
        results.append(segment_features(one, targets, pixels[number], size, settings))
    return results


def segment_features(
    encoded: DenseFeatures,
    targets: Targets,
    pixels: torch.Tensor,
    size: tuple[int, int],
    settings: SegmentSettings,
) -> SegmentedImage:
    """As `segment`, for one image with features that are already computed.

    Args:
        encoded: features of the image, with b = 1.
        targets: of m labels.
        pixels: uint8 (H, W, 3).
        size: (height, width) of the result.
        settings: of the segmentation.
    """
    if settings.prefilter:
        targets = targets.select(prefilter(encoded, targets, settings.prefilter))
    factors = score_factors(encoded, targets, settings)
    if settings.refine == "none":
        threshold = settings.background_threshold if targets.background else 0.0
        winner, best = (maps[0] for maps in label_map(**factors, output_size=size))
        return SegmentedImage(targets.labels[winner.long()].masked_fill(best < threshold, BACKGROUND), best)
    # Refined at the size of `pixels`, and only for targets in the unrefined label map, to save time and memory.
    working = (pixels.shape[0], pixels.shape[1])
    present = label_map(**factors, output_size=working).labels.unique().long()
    scores = concept_scores(**factors, output_size=working, concepts=present)[0]
    return label_scores(scores, targets.select(present), pixels, size, settings)


def score_factors(encoded: DenseFeatures, targets: Targets, settings: SegmentSettings) -> dict[str, Any]:
    """The arguments of `concept_scores` and `label_map`, according to `settings.use`."""
    factors: dict[str, Any] = {"features": None, "references": None}
    if settings.use != "language":
        factors |= {"features": encoded.visual, "references": targets.references}
    if settings.use != "references":
        factors |= {"language_features": encoded.language, "text_embeddings": targets.text_embeddings}
    return factors


def label_scores(
    scores: torch.Tensor,
    targets: Targets,
    pixels: torch.Tensor,
    size: tuple[int, int],
    settings: SegmentSettings,
) -> SegmentedImage:
    """Refines scores, if enabled in the settings, and computes labels.

    Args:
        scores: of each target, (m, H, W).
        targets: of m labels.
        pixels: uint8 (H, W, 3).
        size: (height, width) of the result.
        settings: of the segmentation.
    """
    labels = targets.labels
    if targets.background:
        # The threshold is one more target with a constant score, so that the background is refined like the others.
        scores = torch.cat([scores, torch.full_like(scores[:1], settings.background_threshold)])
        labels = torch.cat([labels, labels.new_tensor([BACKGROUND])])
    refined = refine(scores, pixels.permute(2, 0, 1), settings.refine)
    best = torch.full(size, -torch.inf, device=scores.device)
    winner = torch.zeros(size, dtype=torch.long, device=scores.device)
    for number in range(len(refined)):  # one at a time at full size, to save memory
        resized = F.interpolate(refined[None, number, None], size, mode="bilinear", align_corners=False)[0, 0]
        winner.masked_fill_(resized > best, number)
        best = torch.maximum(best, resized)
    return SegmentedImage(labels[winner], best)


def prefilter(encoded: DenseFeatures, targets: Targets, keep: int) -> torch.Tensor:
    """Indices of the `keep` targets with the highest text similarity at any location, and of all background targets."""
    similarity = (
        torch.einsum("bdhw,md->mhw", encoded.language, targets.text_embeddings).flatten(1).amax(dim=1)
    )
    if targets.background:
        similarity = similarity.masked_fill(targets.labels == BACKGROUND, torch.inf)
        keep += int((targets.labels == BACKGROUND).sum())
    return similarity.topk(min(keep, len(similarity))).indices.sort().values
