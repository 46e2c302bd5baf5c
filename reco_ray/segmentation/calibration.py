"""Calibration of concepts over unlabelled images, for soft pseudo-labels. Torch only.

ReCo compares the scores of concepts directly, although the cosines of one concept may be higher than those of another
everywhere, or vary more. Calibration standardises each factor of each concept's score to mean zero and variance one
over the images to be segmented, as in score normalisation for retrieval and speaker verification. The sum of the
factors is then a logit, and the softmax over concepts a probability. No labels are needed.

It assumes that every concept occurs somewhere in these images.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

    def to(self, device: str) -> "Calibration":
        """Copies it to a device."""
        return Calibration(self.means.to(device), self.deviations.to(device))

    def standardise(self, factor: int, logits: Tensor) -> Tensor:
        """Standardises the logits (b, m, h, w) of a factor."""
        shape = (1, -1, 1, 1)
        return (logits - self.means[factor].view(shape)) / self.deviations[factor].view(shape)

    def to_lists(self) -> dict[str, list[list[float]]]:
        """Converts it for JSON."""
        return {"means": self.means.tolist(), "deviations": self.deviations.tolist()}

    @classmethod
    def from_lists(cls, lists: dict[str, list[list[float]]]) -> "Calibration":
        """Inverse of `to_lists`."""
        return cls(torch.tensor(lists["means"]), torch.tensor(lists["deviations"]))


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


def probabilities(maps: list[Tensor], calibrated: Calibration) -> Tensor:
    """Probability of each concept at each location: the softmax over the sums of standardised factors.

    Args:
        maps: f factors from `score_maps`, (b, m, h, w) in (0, 1), each at its own resolution.
        calibrated: of the same factors and concepts.

    Returns:
        float32 (b, m, h, w) at the finest resolution of the factors.
    """
    size = max((tuple(each.shape[2:]) for each in maps), key=lambda sides: sides[0] * sides[1])
    logits = torch.zeros(*maps[0].shape[:2], *size, device=maps[0].device)
    for factor, each in enumerate(maps):
        standard = calibrated.standardise(factor, each.logit())
        logits += F.interpolate(standard, size, mode="bilinear", align_corners=False)
    return logits.softmax(dim=1)
