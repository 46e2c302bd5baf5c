"""Segmentation in overlapping windows, the usual protocol for CLIP-based segmenters, trained at 224 pixels."""

import torch
import torch.nn.functional as F

from reco_ray.config import SegmentSettings
from reco_ray.models.sliding import slide
from reco_ray.segmentation.score import concept_scores
from reco_ray.segmentation.segment import (
    PixelEncoder,
    SegmentedImage,
    label_logits,
    label_scores,
    prefilter,
    score_factors,
    target_logits,
)
from reco_ray.segmentation.target_set import Targets


def segment_windows(
    models: PixelEncoder,
    targets: Targets,
    pixels: torch.Tensor,
    size: tuple[int, int],
    settings: SegmentSettings,
    *,
    window: int,
    step: int,
) -> SegmentedImage:
    """Segments one image in sliding windows; scores are averaged where windows overlap.

    Args:
        models: the dense models.
        targets: of m labels.
        pixels: uint8 (1, H, W, 3).
        size: (height, width) of the result.
        settings: of the segmentation.
        window: side of a window in pixels, as for `slide`.
        step: distance between windows in pixels, as for `slide`.
    """
    calibrated = targets.calibration is not None
    if settings.prefilter and not calibrated:  # for the whole image, not per window
        targets = targets.select(prefilter(models.encode(pixels), targets, settings.prefilter))

    def score(part: torch.Tensor) -> torch.Tensor:
        encoded, inside = models.encode(part.permute(0, 2, 3, 1)), (part.shape[2], part.shape[3])
        if not calibrated:
            return concept_scores(**score_factors(encoded, targets, settings), output_size=inside)
        logits = target_logits(encoded, targets, settings)[None]
        return F.interpolate(logits, inside, mode="bilinear", align_corners=False)

    total = slide(score, pixels.permute(0, 3, 1, 2), window=window, step=step)[0]
    if calibrated:
        return label_logits(total, targets, None, pixels[0], size, settings)
    return label_scores(total, targets, pixels[0], size, settings)
