"""Segmenting in overlapping windows, as CLIP-based segmenters are measured: their text side knows 224-pixel images."""

import torch

from reco_ray.config import SegmentSettings
from reco_ray.models.sliding import slide
from reco_ray.segmentation.score import concept_scores
from reco_ray.segmentation.segment import Encodes, Segmentation, Targets, label_scores, likely, score_factors


def segment_windows(
    models: Encodes,
    targets: Targets,
    pixels: torch.Tensor,
    size: tuple[int, int],
    settings: SegmentSettings,
    *,
    window: int,
    step: int,
) -> Segmentation:
    """Segments one image window by window; where windows overlap, scores are averaged.

    Args:
        pixels: uint8 (1, H, W, 3). size: (height, width) of the result.
        window, step: pixels, as `slide`; the last window of a row ends at the border.
    """
    if settings.prefilter:  # what the whole image may show, not each window
        targets = targets.only(likely(models.encode(pixels), targets, settings.prefilter))

    def scores(part: torch.Tensor) -> torch.Tensor:
        encoded = models.encode(part.permute(0, 2, 3, 1))
        return concept_scores(
            **score_factors(encoded, targets, settings), output_size=(part.shape[2], part.shape[3])
        )

    total = slide(scores, pixels.permute(0, 3, 1, 2), window=window, step=step)[0]
    return label_scores(total, targets, pixels[0], size, settings)
