"""Scores all variants in one pass over the images of a benchmark, on Ray."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reco_ray.config import Settings
from reco_ray.cosegmentation.sample import open_sample, sample_of_images
from reco_ray.distributed.parts import Report, Worker, cut
from reco_ray.distributed.pool import stage_pool
from reco_ray.evaluation.compare import Comparer, Trained, Variant, sample_loader
from reco_ray.evaluation.dataset import Dataset
from reco_ray.evaluation.evaluation_protocol import Protocol
from reco_ray.evaluation.variant_scores import VariantScores
from reco_ray.models.description import describe_dense_models

SHARD_SIZE = 16


def score(
    dataset: Dataset,
    variants: Mapping[str, Variant | Trained],
    protocol: Protocol,
    settings: Settings,
    sample: str | None = None,
) -> VariantScores:
    """Segments every sample with every variant on the connected Ray cluster.

    Args:
        dataset: The data set.
        variants: By name.
        protocol: The evaluation protocol.
        settings: All settings.
        sample: URI of the feature sample of the images, from `sample_images`; None: that of the corpus.

    Raises:
        RecoError: If an image cannot be used or a label file does not match it.
    """
    dense = describe_dense_models(settings.models, settings.seed)
    shards = cut(_numbered(dataset), SHARD_SIZE)
    measured = VariantScores.empty(dataset, variants)
    transform, stride = dense.transform, dense.stride
    load = sample_loader(transform, stride, protocol, settings.segment.max_pixels)
    device, placement = settings.models.device, settings.placement.evaluate
    worker = EvaluateWorker(dataset, variants, protocol, settings, sample)
    with stage_pool("evaluate", device, placement, len(dataset.samples)) as pool:
        for report in pool.shards(shards, load, worker):
            for name in variants:
                measured.matrices[name] += np.array(report.matrices[name], np.int64)
                if report.with_background:
                    measured.with_background[name] += np.array(report.with_background[name], np.int64)
                measured.images[name].update(report.images[name])
                measured.jaccards[name].update(report.jaccards[name])
    return measured


def sample_images(dataset: Dataset, protocol: Protocol, settings: Settings, uri: str) -> str | None:
    """Measures a feature sample of the images, as the segment stage does.

    Returns:
        `uri`, or None if the sample of the corpus serves, as of `sample_of_images`.
    """
    dense = describe_dense_models(settings.models, settings.seed)
    load = sample_loader(dense.transform, dense.stride, protocol, settings.segment.max_pixels)
    return sample_of_images(uri, _numbered(dataset), load, settings, settings.placement.evaluate)


def _numbered(dataset: Dataset) -> pa.Table:
    """The rows that `sample_loader` loads, one per sample."""
    uris = [sample.image for sample in dataset.samples]
    return pa.table({"uri": uris, "number": range(len(uris))})


@dataclass(frozen=True)
class EvaluateReport(Report):
    """Counts of one shard, as of `VariantScores`, with matrices as nested lists.

    Attributes:
        matrices: As in `VariantScores`.
        with_background: The same; empty if it is that of `matrices`.
        images: As in `VariantScores`.
        jaccards: As in `VariantScores`.
    """

    matrices: dict[str, list[list[int]]]
    with_background: dict[str, list[list[int]]]
    images: dict[str, dict[int, float | None]]
    jaccards: dict[str, dict[int, dict[int, float]]]


class EvaluateWorker(Worker[EvaluateReport]):
    """Segments the samples of a shard and counts their pixels."""

    report = EvaluateReport

    def __init__(
        self,
        dataset: Dataset,
        variants: Mapping[str, Variant | Trained],
        protocol: Protocol,
        settings: Settings,
        sample: str | None,
    ) -> None:
        self._dataset, self._protocol, self._settings = dataset, protocol, settings
        self._variants, self._sample = variants, sample

    def set_up(self, device: str) -> None:
        """Loads the models, references and segmenters of all variants."""
        sample = None if self._sample is None else open_sample(self._sample)
        self._compare = Comparer(
            self._dataset, self._variants, self._protocol, self._settings, device, sample
        )

    def work(self, name: str, rows: pa.Table) -> EvaluateReport:
        """Evaluates one shard."""
        counted = VariantScores.empty(self._dataset, self._variants)
        for compared in self._compare(rows):
            counted.add(compared)
        own = self._dataset.vocabulary.background
        return EvaluateReport(
            rows.num_rows,
            matrices={name: matrix.tolist() for name, matrix in counted.matrices.items()},
            with_background={}
            if own
            else {name: matrix.tolist() for name, matrix in counted.with_background.items()},
            images=counted.images,
            jaccards=counted.jaccards,
        )
