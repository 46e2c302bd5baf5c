"""Data sent between the ingress and the models: scaled pixels and label maps."""

from dataclasses import dataclass

import numpy as np
import torch

from reco_ray.config import SegmentSettings
from reco_ray.segmentation.masks import statistics
from reco_ray.segmentation.segment import SegmentedImage
from reco_ray.serving.bank_of_request import BankRef


@dataclass(frozen=True)
class SegmentTask:
    """One image to label.

    pixels: uint8 (H, W, 3), at the size that the model takes.
    size: (height, width) of the answer.
    deadline: `time.time()` after which the request has timed out.
    refine, background, threshold: options of the request; None = the server's settings.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    bank: BankRef
    deadline: float
    refine: str | None = None
    background: bool | None = None
    threshold: float | None = None

    def applied_to(self, settings: SegmentSettings) -> SegmentSettings:
        """The server's settings with the options of the request."""
        own = {
            "refine": self.refine,
            "background": self.background,
            "background_threshold": self.threshold,
        }
        return settings.model_copy(update={key: value for key, value in own.items() if value is not None})


@dataclass(frozen=True)
class LabelledImage:
    """labels: (H, W), uint8 up to 256 labels, else uint16. found: (label, pixels, mean score) of those present."""

    labels: np.ndarray
    found: list[tuple[int, int, float]]

    @classmethod
    def of(cls, result: SegmentedImage, labels: int) -> "LabelledImage":
        """Converts a segmentation to the smallest dtype for `labels` label ids."""
        small = result.labels.to(torch.uint8 if labels <= 256 else torch.int32).cpu().numpy()
        found = statistics(small, result.scores.cpu().numpy())
        return cls(small if labels <= 256 else small.astype(np.uint16), found)


@dataclass(frozen=True)
class TaskFailure:
    """HTTP status and reason for an image that could not be labelled; others of its batch may succeed."""

    status: int
    reason: str


DEADLINE_EXCEEDED = TaskFailure(
    503, "the server is too busy: the time was up before it was this image's turn"
)
