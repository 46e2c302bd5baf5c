"""Counts and figures of every variant. numpy only.

Confusion matrices are sums of integers, and figures of single images are averaged in the order of the images, so the
results do not depend on the order of work.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from reco_ray.evaluation.compare import Compared
from reco_ray.evaluation.confusion import (
    confusion_matrix,
    empty_matrix,
    image_jaccards,
    mean_jaccards,
    scores,
)
from reco_ray.evaluation.dataset import Dataset


@dataclass(frozen=True)
class VariantScores:
    """Counts of every variant.

    Attributes:
        dataset: The data set.
        matrices: Variant -> confusion matrix of the classes, int64 (m, m + 1).
        with_background: Variant -> confusion matrix of `Dataset.classes_with_background`, the same as in `matrices` if
            the data set has a background; empty if its labels do not show where the background is.
        images: Variant -> number of a sample -> its mIoU, None if no pixel of it is counted.
        jaccards: Variant -> number of a sample -> its `image_jaccards`, of the classes with background if there are
            any.
    """

    dataset: Dataset
    matrices: dict[str, np.ndarray]
    with_background: dict[str, np.ndarray]
    images: dict[str, dict[int, float | None]]
    jaccards: dict[str, dict[int, dict[int, float]]]

    @classmethod
    def empty(cls, dataset: Dataset, variants: Iterable[str]) -> "VariantScores":
        """Counts of no sample."""
        names, classes = list(variants), len(dataset.classes)
        matrices = {name: empty_matrix(classes) for name in names}
        with_background: dict[str, np.ndarray] = {}
        if dataset.vocabulary.background:
            with_background = matrices
        elif dataset.binary:
            with_background = {name: empty_matrix(classes + 1) for name in names}
        return cls(
            dataset, matrices, with_background, {name: {} for name in names}, {name: {} for name in names}
        )

    def add(self, compared: Compared) -> None:
        """Counts a sample."""
        classes, full = len(self.dataset.classes), compared.with_background
        background = self.dataset.classes_with_background is not None
        for variant, predicted in compared.predicted.items():
            matrix = confusion_matrix(compared.truth, predicted, classes)
            self.matrices[variant] += matrix
            self.images[variant][compared.number] = scores(matrix)["miou"]
            if full is not None:
                matrix = confusion_matrix(full.truth, full.predicted[variant], classes + 1)
                self.with_background[variant] += matrix
            self.jaccards[variant][compared.number] = image_jaccards(matrix, background)

    def figures(self, variant: str) -> dict[str, Any]:
        """Figures of a variant for `results.json`, shares in [0, 1].

        Returns:
            `miou`, `pixel_accuracy` and `iou` (by class) as of `scores`; `miou_with_background` and
            `iou_with_background`, the same with the background as a class, None if there is no background;
            `mask_jaccard` and `mask_jaccard_by_class` as of `mean_jaccards`, without the background.
        """
        classes, full = self.dataset.classes, self.dataset.classes_with_background
        plain = scores(self.matrices[variant])
        figures: dict[str, Any] = {**plain, "iou": dict(zip(classes, plain["iou"], strict=True))}
        figures |= {"miou_with_background": None, "iou_with_background": None}
        if full is not None:
            counted = scores(self.with_background[variant])
            figures["miou_with_background"] = counted["miou"]
            figures["iou_with_background"] = dict(zip(full, counted["iou"], strict=True))
        names, jaccards = full or classes, self.jaccards[variant]
        mean, by_class = mean_jaccards([each for _, each in sorted(jaccards.items())], len(names))
        first = 0 if full is None else 1
        figures["mask_jaccard"] = mean
        figures["mask_jaccard_by_class"] = dict(zip(names[first:], by_class[first:], strict=True))
        return figures
