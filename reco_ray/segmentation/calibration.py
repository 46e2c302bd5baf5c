"""Concepts made comparable over many unlabelled images: what soft pseudo-labels are made of. Torch only.

ReCo compares the concepts' scores as they are, although the cosines of one concept may lie above those of another
everywhere, and vary more. Both can be seen without a label: over the images that are to be segmented, every factor of
every concept's score gets mean zero and variance one, as in score normalisation for retrieval and speaker verification.
The sum of the factors is then a logit, and its softmax says how sure the label is.

It takes for granted that every concept can be seen somewhere in these images.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_DEVIATION = 1e-4  # of a concept whose scores are the same everywhere


@dataclass(frozen=True)
class Calibration:
    """How the logits of m concepts, or of each of f factors of them, lie over many images.

    means, deviations: float32 (f, m).
    """

    means: Tensor
    deviations: Tensor

    def to(self, device: str) -> "Calibration":
        """The same on another device."""
        return Calibration(self.means.to(device), self.deviations.to(device))

    def standardised(self, factor: int, logits: Tensor) -> Tensor:
        """Logits (b, m, h, w) of a factor -> with mean zero and variance one over those images."""
        shape = (1, -1, 1, 1)
        return (logits - self.means[factor].view(shape)) / self.deviations[factor].view(shape)

    def to_lists(self) -> dict[str, list[list[float]]]:
        """As JSON holds it."""
        return {"means": self.means.tolist(), "deviations": self.deviations.tolist()}

    @classmethod
    def from_lists(cls, lists: dict[str, list[list[float]]]) -> "Calibration":
        """What `to_lists` gave."""
        return cls(torch.tensor(lists["means"]), torch.tensor(lists["deviations"]))


def moments(logits: list[Tensor]) -> Tensor:
    """Counts, sums and sums of squares of logits, to be added up over images.

    Args:
        logits: f factors, (b, m, h, w) each at its own resolution.

    Returns:
        float64 (3, f, m).
    """
    rows = [each.double().transpose(0, 1).flatten(1) for each in logits]
    counts = [torch.full_like(one[:, 0], one.shape[1]) for one in rows]
    sums, squares = [one.sum(1) for one in rows], [one.square().sum(1) for one in rows]
    return torch.stack([torch.stack(each) for each in (counts, sums, squares)])


def calibration(total: Tensor) -> Calibration:
    """The calibration of all images whose `moments`, float64 (3, f, m), were added up."""
    counts, sums, squares = total
    means = sums / counts
    variances = (squares / counts - means.square()).clamp_min(0)
    return Calibration(means.float(), variances.sqrt().clamp_min(SMALLEST_DEVIATION).float())


def probabilities(maps: list[Tensor], calibrated: Calibration) -> Tensor:
    """How likely each concept is at each location: the softmax over the sum of its standardised factors.

    Args:
        maps: f factors, (b, m, h, w) each at its own resolution, in (0, 1): `score_maps`.

    Returns:
        float32 (b, m, h, w) at the finest of the factors' resolutions.
    """
    size = max((tuple(each.shape[2:]) for each in maps), key=lambda sides: sides[0] * sides[1])
    logits = torch.zeros(*maps[0].shape[:2], *size, device=maps[0].device)
    for factor, each in enumerate(maps):
        standard = calibrated.standardised(factor, each.logit())
        logits += F.interpolate(standard, size, mode="bilinear", align_corners=False)
    return logits.softmax(dim=1)
