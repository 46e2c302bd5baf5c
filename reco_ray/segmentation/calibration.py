"""Statistics that make the scores of different concepts comparable. Torch only."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

MIN_DEVIATION = 1e-4  # for concepts with constant scores


@dataclass(frozen=True)
class Calibration:
    """Statistics of the logits of m concepts, per factor, over many images.

    Attributes:
        means: float32 (f, m).
        deviations: standard deviations, float32 (f, m).
    """

    means: Tensor
    deviations: Tensor

    def to(self, device: str) -> Self:
        """Copies it to a device."""
        return replace(self, means=self.means.to(device), deviations=self.deviations.to(device))

    def standardise(self, factor: int, logits: Tensor) -> Tensor:
        """Standardises the logits (b, m, h, w) of a factor."""
        shape = (1, -1, 1, 1)
        return (logits - self.means[factor].view(shape)) / self.deviations[factor].view(shape)


@dataclass(frozen=True)
class ScoreCalibration(Calibration):
    """Statistics of the reference, language and image evidence of m targets over unlabelled images.

    Attributes:
        image_weight: share of the reference evidence's variance that lies between images, in [0, 1]: near 0.35 for
            photographs of single objects, which the whole image tells apart, and 0.03 for frames of street scenes.
        least: logit below which a location is background; -inf without a background.
        present: logit that a concept must reach somewhere in an image; -inf without a background.
    """

    image_weight: float
    least: float = -torch.inf
    present: float = -torch.inf

    def select(self, indices: Tensor) -> "ScoreCalibration":
        """Of the targets at `indices`, int64 (k,)."""
        return replace(self, means=self.means[:, indices], deviations=self.deviations[:, indices])


def moments(logits: list[Tensor]) -> Tensor:
    """Counts, sums and sums of squares of logits, which can be added up over images.

    Args:
        logits: f factors, (b, m, h, w), each at its own resolution.

    Returns:
        float64 (3, f, m).
    """
    rows = [each.double().transpose(0, 1).flatten(1) for each in logits]
    counts = [torch.full_like(one[:, 0], one.shape[1]) for one in rows]
    sums, squares = [one.sum(1) for one in rows], [one.square().sum(1) for one in rows]
    return torch.stack([torch.stack(each) for each in (counts, sums, squares)])


def calibration(total: Tensor) -> Calibration:
    """Calibration from the sum of the `moments` of all images, float64 (3, f, m)."""
    counts, sums, squares = total
    means = sums / counts
    variances = (squares / counts - means.square()).clamp_min(0)
    return Calibration(means.float(), variances.sqrt().clamp_min(MIN_DEVIATION).float())
