"""Pixels -> label maps: encode, score, refine, argmax. Torch only."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from reco_ray.config import SegmentSettings
from reco_ray.models.dense import DenseModels
from reco_ray.segmentation.refine import refine
from reco_ray.segmentation.score import concept_scores, label_map


@dataclass(frozen=True)
class Segmentation:
    """labels: int64 (H, W), concept indices. scores: float32 (H, W), of the winning concept."""

    labels: torch.Tensor
    scores: torch.Tensor


def segment(
    models: DenseModels,
    references: torch.Tensor,
    text_embeddings: torch.Tensor,
    pixels: torch.Tensor,
    output_sizes: list[tuple[int, int]],
    settings: SegmentSettings,
) -> list[Segmentation]:
    """Segments images of one size (ReCo, section 3.4).

    Args:
        references: (m, c). text_embeddings: (m, d) of the dense language model.
        pixels: uint8 (b, H, W, 3), sides multiples of the encoder's stride.
        output_sizes: (height, width) of each result.
    """
    encoded = models.encode(pixels)
    results = []
    for number, size in enumerate(output_sizes):
        factors: dict[str, Any] = {"features": None, "references": None}
        if settings.use != "language":
            factors |= {"features": encoded.visual[number : number + 1], "references": references}
        if settings.use != "references":
            language = encoded.language[number : number + 1]
            factors |= {"language_features": language, "text_embeddings": text_embeddings}
        if settings.refine == "none":
            labels, scores = label_map(**factors, output_size=size)
            results.append(Segmentation(labels[0].long(), scores[0]))
            continue
        # Refined at the size the models saw, where the photograph is at hand, and only among the concepts that won
        # anywhere: the others would cost time and memory without a chance to appear.
        working = (pixels.shape[1], pixels.shape[2])
        present = label_map(**factors, output_size=working).labels.unique().long()
        scores = concept_scores(**factors, output_size=working, concepts=present)[0]
        refined = refine(scores, pixels[number].permute(2, 0, 1), settings.refine)
        resized = F.interpolate(refined[None], size, mode="bilinear", align_corners=False)[0]
        best, winner = resized.max(dim=0)
        results.append(Segmentation(present[winner], best))
    return results
