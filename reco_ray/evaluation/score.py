"""Scores all variants in one pass over the images of a benchmark, on Ray.

Confusion matrices are sums of integers, so the results do not depend on the order of work.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reco_ray.config import Settings
from reco_ray.distributed.parts import Report, Worker, cut
from reco_ray.distributed.pool import stage_pool
from reco_ray.evaluation.compare import Comparer, Trained, Variant, sample_loader
from reco_ray.evaluation.confusion import confusion_matrix, scores
from reco_ray.evaluation.dataset import Dataset
from reco_ray.evaluation.evaluation_protocol import Protocol
from reco_ray.models.description import describe_dense_models

SHARD_SIZE = 16


@dataclass(frozen=True)
class VariantScores:
    """Figures of every variant.

    Attributes:
        matrices: Variant -> confusion matrix, int64 (m, m + 1).
        images: Variant -> mIoU of every sample, None if no pixel of it is counted.
    """

    matrices: dict[str, np.ndarray]
    images: dict[str, list[float | None]]


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
    measured = VariantScores(
        {name: np.zeros((classes, classes + 1), np.int64) for name in variants},
        {name: [None] * count for name in variants},
    )
    worker = EvaluateWorker(dataset, variants, protocol, settings)
    transform, stride = dense.transform, dense.stride
    load = sample_loader(transform, stride, protocol, settings.segment.max_pixels)
    device, placement = settings.models.device, settings.placement.evaluate
    with stage_pool("evaluate", device, placement, count) as pool:
        for report in pool.shards(shards, load, worker):
            for name in variants:
                measured.matrices[name] += np.array(report.matrices[name], np.int64)
                for number, miou in zip(report.numbers, report.images[name], strict=True):
                    measured.images[name][number] = miou
    return measured


@dataclass(frozen=True)
class EvaluateReport(Report):
    """Figures of one shard.

    Attributes:
        numbers: Numbers of its samples.
        matrices: Variant -> confusion matrix as nested lists.
        images: Variant -> mIoU of every sample, None if no pixel of it is counted.
    """

    numbers: list[int]
    matrices: dict[str, list[list[int]]]
    images: dict[str, list[float | None]]


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
        self._variants, self._classes = variants, len(dataset.classes)

    def set_up(self, device: str) -> None:
        """Loads the models, references and segmenters of all variants."""
        self._compare = Comparer(self._dataset, self._variants, self._protocol, self._settings, device)

    def work(self, name: str, rows: pa.Table) -> EvaluateReport:
        """Evaluates one shard."""
        matrices = {v: np.zeros((self._classes, self._classes + 1), np.int64) for v in self._variants}
        images: dict[str, list[float | None]] = {v: [] for v in self._variants}
        for compared in self._compare(rows):
            for variant, predicted in compared.predicted.items():
                matrix = confusion_matrix(compared.truth, predicted, self._classes)
                matrices[variant] += matrix
                images[variant].append(scores(matrix)["miou"] if matrix.any() else None)
        return EvaluateReport(
            rows.num_rows,
            numbers=rows["number"].to_pylist(),
            matrices={variant: matrix.tolist() for variant, matrix in matrices.items()},
            images=images,
        )
