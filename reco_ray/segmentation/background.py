"""Where an image shows none of the concepts, by calibrated scores and by the image itself. Torch only."""

import torch
from torch import Tensor


def background_level(best: Tensor, least: float) -> float:
    """The logit of the background in one image.

    Within an image, object and surroundings separate far better than over many images. The level is the mean of Otsu's
    threshold and the middle between the lowest and the highest logit, but at least `least`.

    Args:
        best: logits of the best concept at every pixel, any shape.
        least: as of `ScoreCalibration`.
    """
    values = best.flatten().float()
    low, high = float(values.min()), float(values.max())
    return max(least, 0.5 * otsu(values) + 0.25 * (low + high))


def otsu(values: Tensor, bins: int = 256) -> float:
    """The threshold that maximises the variance between the values below and above it (Otsu, 1979).

    Args:
        values: float (n,).
        bins: of the histogram.

    Returns:
        The threshold; the value itself if all are equal.
    """
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return low
    counts = torch.histc(values, bins, low, high).double().cpu()
    centres = low + (torch.arange(bins, dtype=torch.double) + 0.5) * (high - low) / bins
    below = counts.cumsum(0) / counts.sum()
    sums = (counts * centres).cumsum(0) / counts.sum()
    between = (sums[-1] * below - sums).square() / (below * (1 - below)).clamp_min(1e-12)
    best = between[:-1]
    # All thresholds in a gap of the histogram are equally good: the middle of the gap.
    places = (best >= best.max() * (1 - 1e-9)).nonzero().flatten()
    return float(low + (places.double().mean() + 1) * (high - low) / bins)
