"""Data sent between the ingress and the models: scaled pixels and label maps."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from reco_ray.config import SegmentSettings
from reco_ray.errors import RecoError
from reco_ray.segmentation.masks import statistics
from reco_ray.segmentation.segment import SegmentedImage
from reco_ray.serving.bank_of_request import BankRef
from reco_ray.serving.serving_metrics import ModelMetrics

logger = logging.getLogger("ray.serve")
Features = TypeVar("Features")


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


def label_batch(
    tasks: list[SegmentTask],
    encode: Callable[[torch.Tensor], Features],
    label: Callable[[SegmentTask, Features, int, torch.Tensor], LabelledImage],
    metrics: ModelMetrics,
) -> list[LabelledImage | TaskFailure]:
    """Labels images of one shape with one pass of a network; a failure of one leaves the others.

    Args:
        tasks: those whose deadline has passed are not computed.
        encode: runs the network: uint8 (b, H, W, 3) -> features.
        label: labels one image: its task, the features of all, its number among them, its pixels.
        metrics: of the replica.
    """
    now = time.time()
    kept = [task for task in tasks if task.deadline >= now]
    if not kept:
        return [DEADLINE_EXCEEDED] * len(tasks)
    metrics.batch(len(kept))
    pixels = torch.from_numpy(np.stack([task.pixels for task in kept]))
    with metrics.timed("encode"):
        features = encode(pixels)

    def one(number: int, task: SegmentTask) -> LabelledImage | TaskFailure:
        try:
            return label(task, features, number, pixels[number])
        except RecoError as error:
            return TaskFailure(409, str(error))
        except Exception:
            logger.exception("labelling failed")
            return TaskFailure(500, "labelling failed: the server's log says why")

    labelled = iter([one(number, task) for number, task in enumerate(kept)])
    return [next(labelled) if task.deadline >= now else DEADLINE_EXCEEDED for task in tasks]
