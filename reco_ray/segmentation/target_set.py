"""What every location of an image is compared with. Torch only."""

from dataclasses import dataclass, replace

import torch

from reco_ray.segmentation.calibration import ScoreCalibration

BACKGROUND = 0  # label id of the background, if there is one


@dataclass(frozen=True)
class Targets:
    """Embeddings that every location is compared with.

    Attributes:
        references: (m, c), or (m, p, c) with p prototypes per target.
        text_embeddings: (m, d), of the dense language model.
        labels: label id of each target, int64 (m,); several may have that of the background.
        background: whether there is a background, which also takes locations with low scores.
        calibration: of the targets' evidence; None: scores are ReCo's products.
    """

    references: torch.Tensor
    text_embeddings: torch.Tensor
    labels: torch.Tensor
    background: bool = False
    calibration: ScoreCalibration | None = None

    def to(self, device: str) -> "Targets":
        """Copies it to a device."""
        return replace(
            self,
            references=self.references.to(device),
            text_embeddings=self.text_embeddings.to(device),
            labels=self.labels.to(device),
            calibration=None if self.calibration is None else self.calibration.to(device),
        )

    def select(self, indices: torch.Tensor) -> "Targets":
        """The targets at `indices`, int64 (k,)."""
        return replace(
            self,
            references=self.references[indices],
            text_embeddings=self.text_embeddings[indices],
            labels=self.labels[indices],
            calibration=None if self.calibration is None else self.calibration.select(indices),
        )
