"""Scores all variants in one pass over the images of a benchmark, on Ray.

Confusion matrices are sums of integers, and figures of single images are put into the order of the images, so the
results do not depend on the order of work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from reco_ray.config import Settings
from reco_ray.distributed.parts import Report, Worker, cut
from reco_ray.distributed.pool import stage_pool
from reco_ray.evaluation.compare import Comparer, Trained, Variant, sample_loader
from reco_ray.evaluation.confusion import (
    confusion_matrix,
    empty_matrix,
    image_jaccards,
    mean_jaccards,
    scores,
)
from reco_ray.evaluation.dataset import Dataset
from reco_ray.evaluation.evaluation_protocol import Protocol
from reco_ray.models.description import describe_dense_models

SHARD_SIZE = 16


@dataclass(frozen=True)
class VariantScores:
    """Counts of every variant.

    Attributes:
        dataset: The data set.
        matrices: Variant -> confusion matrix of the classes, int64 (m, m + 1).
        with_background: Variant -> confusion matrix of `Dataset.classes_with_background`, the same as in `matrices` if
            the data set has a background; empty if its labels do not show where the background is.
        images: Variant -> mIoU of every sample, None if no pixel of it is counted.
        jaccards: Variant -> `image_jaccards` of every sample, of the classes with background if there are any.
    """

    dataset: Dataset
    matrices: dict[str, np.ndarray]
    with_background: dict[str, np.ndarray]
    images: dict[str, list[float | None]]
    jaccards: dict[str, list[dict[int, float]]]

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
        names = full or classes
        mean, by_class = mean_jaccards(self.jaccards[variant], len(names))
        first = 0 if full is None else 1
        figures["mask_jaccard"] = mean
        figures["mask_jaccard_by_class"] = dict(zip(names[first:], by_class[first:], strict=True))
        return figures


def score(
    dataset: Dataset, variants: Mapping[str, Variant | Trained], protocol: Protocol, settings: Settings
) -> VariantScores:
    """Segments every sample with every variant on the connected Ray cluster.

    Raises:
        RecoError: If an image cannot be used or a label file does not match it.
    """
    dense = describe_dense_models(settings.models, settings.seed)
    count, classes = len(dataset.samples), len(dataset.classes)
    table = pa.table({"uri": [sample.image for sample in dataset.samples], "number": range(count)})
    shards = cut(table, SHARD_SIZE)
    matrices = {name: empty_matrix(classes) for name in variants}
    with_background = {}
    if dataset.vocabulary.background:
        with_background = matrices
    elif dataset.binary:
        with_background = {name: empty_matrix(classes + 1) for name in variants}
    measured = VariantScores(
        dataset,
        matrices,
        with_background,
        images={name: [None] * count for name in variants},
        jaccards={name: [{}] * count for name in variants},
    )
    worker = EvaluateWorker(dataset, variants, protocol, settings)
    transform, stride = dense.transform, dense.stride
    load = sample_loader(transform, stride, protocol, settings.segment.max_pixels)
    device, placement = settings.models.device, settings.placement.evaluate
    with stage_pool("evaluate", device, placement, count) as pool:
        for report in pool.shards(shards, load, worker):
            for name in variants:
                matrices[name] += np.array(report.matrices[name], np.int64)
                if name in report.with_background:
                    with_background[name] += np.array(report.with_background[name], np.int64)
                for row, number in enumerate(report.numbers):
                    measured.images[name][number] = report.images[name][row]
                    measured.jaccards[name][number] = report.jaccards[name][row]
    return measured


@dataclass(frozen=True)
class EvaluateReport(Report):
    """Figures of one shard.

    Attributes:
        numbers: Numbers of its samples.
        matrices: Variant -> confusion matrix as nested lists.
        with_background: For binary masks, the same of the classes with background; else empty.
        images: Variant -> mIoU of every sample, None if no pixel of it is counted.
        jaccards: Variant -> `image_jaccards` of every sample.
    """

    numbers: list[int]
    matrices: dict[str, list[list[int]]]
    with_background: dict[str, list[list[int]]]
    images: dict[str, list[float | None]]
    jaccards: dict[str, list[dict[int, float]]]


class EvaluateWorker(Worker[EvaluateReport]):
    """Segments the samples of a shard and counts their pixels."""

    report = EvaluateReport

    def __init__(
        self,
        dataset: Dataset,
        variants: Mapping[str, Variant | Trained],
        protocol: Protocol,
        settings: Settings,
    ) -> None:
        self._dataset, self._protocol, self._settings = dataset, protocol, settings
        self._variants = variants

    def set_up(self, device: str) -> None:
        """Loads the models, references and segmenters of all variants."""
        self._compare = Comparer(self._dataset, self._variants, self._protocol, self._settings, device)

    def work(self, name: str, rows: pa.Table) -> EvaluateReport:
        """Evaluates one shard."""
        classes, own = len(self._dataset.classes), self._dataset.vocabulary.background
        matrices = {v: empty_matrix(classes) for v in self._variants}
        with_background: dict[str, np.ndarray] = {}
        images: dict[str, list[float | None]] = {v: [] for v in self._variants}
        jaccards: dict[str, list[dict[int, float]]] = {v: [] for v in self._variants}
        for compared in self._compare(rows):
            full = compared.with_background
            for variant, predicted in compared.predicted.items():
                matrix = confusion_matrix(compared.truth, predicted, classes)
                matrices[variant] += matrix
                images[variant].append(scores(matrix)["miou"])
                if full is not None:
                    matrix = confusion_matrix(full.truth, full.predicted[variant], classes + 1)
                    total = with_background.setdefault(variant, empty_matrix(classes + 1))
                    total += matrix
                jaccards[variant].append(image_jaccards(matrix, background=own or full is not None))
        return EvaluateReport(
            rows.num_rows,
            numbers=rows["number"].to_pylist(),
            matrices={variant: matrix.tolist() for variant, matrix in matrices.items()},
            with_background={variant: matrix.tolist() for variant, matrix in with_background.items()},
            images=images,
            jaccards=jaccards,
        )
