"""Pixels -> label maps: encode, score, refine, argmax. Torch only."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from reco_ray.config import SegmentSettings
from reco_ray.models.dense import DenseFeatures
from reco_ray.segmentation.refine import refine
from reco_ray.segmentation.score import concept_scores, label_map

BACKGROUND = 0  # its label id, where there is a background


class Encodes(Protocol):
    """What segmenting needs of `DenseModels`."""

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        """uint8 (b, H, W, 3) -> features."""


@dataclass(frozen=True)
class Targets:
    """What every location is compared with.

    references: (m, c) or, with p prototypes each, (m, p, c). text_embeddings: (m, d) of the dense language model.
    labels: int64 (m,), the label id that each of them stands for; several may stand for the background.
    background: whether there is one, which then also takes what no target fits.
    """

    references: torch.Tensor
    text_embeddings: torch.Tensor
    labels: torch.Tensor
    background: bool = False

    def to(self, device: str) -> "Targets":
        """The same on another device."""
        return replace(
            self,
            references=self.references.to(device),
            text_embeddings=self.text_embeddings.to(device),
            labels=self.labels.to(device),
        )

    def only(self, chosen: torch.Tensor) -> "Targets":
        """Those at the indices `chosen`, int64 (k,)."""
        return replace(
            self,
            references=self.references[chosen],
            text_embeddings=self.text_embeddings[chosen],
            labels=self.labels[chosen],
        )


@dataclass(frozen=True)
class Segmentation:
    """labels: int64 (H, W), label ids. scores: float32 (H, W), of the winner."""

    labels: torch.Tensor
    scores: torch.Tensor


def segment(
    models: Encodes,
    targets: Targets,
    pixels: torch.Tensor,
    output_sizes: list[tuple[int, int]],
    settings: SegmentSettings,
) -> list[Segmentation]:
    """Segments images of one size (ReCo, section 3.4).

    Args:
        pixels: uint8 (b, H, W, 3), sides multiples of the encoder's stride.
        output_sizes: (height, width) of each result.
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
) -> Segmentation:
    """`segment` of one image whose features are at hand.

    Args:
        encoded: (1, c, h, w) and (1, d, h', w'). pixels: uint8 (H, W, 3). size: (height, width) of the result.
    """
    if settings.prefilter:
        targets = targets.only(likely(encoded, targets, settings.prefilter))
    factors = score_factors(encoded, targets, settings)
    if settings.refine == "none":
        threshold = settings.background_threshold if targets.background else 0.0
        winner, best = (maps[0] for maps in label_map(**factors, output_size=size))
        return Segmentation(targets.labels[winner.long()].masked_fill(best < threshold, BACKGROUND), best)
    # Refined at the size the models saw, where the photograph is at hand, and only among the targets that won anywhere:
    # the others would cost time and memory without a chance to appear.
    working = (pixels.shape[0], pixels.shape[1])
    present = label_map(**factors, output_size=working).labels.unique().long()
    scores = concept_scores(**factors, output_size=working, concepts=present)[0]
    return label_scores(scores, targets.only(present), pixels, size, settings)


def score_factors(encoded: DenseFeatures, targets: Targets, settings: SegmentSettings) -> dict[str, Any]:
    """The arguments of `concept_scores` and `label_map` for what the settings score by."""
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
) -> Segmentation:
    """Scores at the size of the image -> labels at `size`, refined first if the settings say so.

    Args:
        scores: (m, H, W), of each target. pixels: uint8 (H, W, 3).
    """
    labels = targets.labels
    if targets.background:
        # The threshold is one more target, of a constant score: so the background has edges as sharp as all others.
        scores = torch.cat([scores, torch.full_like(scores[:1], settings.background_threshold)])
        labels = torch.cat([labels, labels.new_tensor([BACKGROUND])])
    refined = refine(scores, pixels.permute(2, 0, 1), settings.refine)
    best = torch.full(size, -torch.inf, device=scores.device)
    winner = torch.zeros(size, dtype=torch.long, device=scores.device)
    for number in range(len(refined)):  # one at a time at the full size: there may be hundreds
        resized = F.interpolate(refined[None, number, None], size, mode="bilinear", align_corners=False)[0, 0]
        winner.masked_fill_(resized > best, number)
        best = torch.maximum(best, resized)
    return Segmentation(labels[winner], best)


def likely(encoded: DenseFeatures, targets: Targets, keep: int) -> torch.Tensor:
    """Indices of the `keep` targets whose words fit the image best somewhere, and of all that stand for background."""
    similarity = (
        torch.einsum("bdhw,md->mhw", encoded.language, targets.text_embeddings).flatten(1).amax(dim=1)
    )
    if targets.background:
        similarity = similarity.masked_fill(targets.labels == BACKGROUND, torch.inf)
        keep += int((targets.labels == BACKGROUND).sum())
    return similarity.topk(min(keep, len(similarity))).indices.sort().values
