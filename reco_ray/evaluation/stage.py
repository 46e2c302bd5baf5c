"""The evaluation stage, on Ray: builds references without labels, then scores all variants in one pass over the images.

Confusion matrices are sums of integers, so the results do not depend on the order of work.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from reco_ray.config import SegmentSettings, Settings
from reco_ray.corpus.own_output import mark_output
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.stage import build_references
from reco_ray.distributed.parts import Report, Worker, cut
from reco_ray.distributed.pool import stage_pool
from reco_ray.errors import OtherModelError
from reco_ray.evaluation.compare import Comparer, Trained, Variant, sample_loader
from reco_ray.evaluation.confusion import confusion_matrix, scores
from reco_ray.evaluation.dataset import Dataset
from reco_ray.evaluation.evaluation_protocol import Protocol
from reco_ray.evaluation.evaluation_report import write_report
from reco_ray.evaluation.jaccard import cosegmentation_jaccard
from reco_ray.evaluation.provenance import provenance
from reco_ray.files import storage
from reco_ray.models.description import describe_dense_models
from reco_ray.training import Segmenter

SHARD_SIZE = 16
RECO, RECO_PLUS = "ReCo", "ReCo+"
CONFUSION_SCHEMA = pa.schema(
    [("variant", pa.string()), ("truth", pa.string()), ("predicted", pa.string()), ("pixels", pa.int64())]
)


def variants(settings: SegmentSettings) -> dict[str, SegmentSettings]:
    """The variants to compare: the ablations, ReCo and, if the settings have a refinement, refined ReCo."""
    plain = settings.model_copy(update={"refine": "none", "use": "both"})
    chosen = {
        "language only": plain.model_copy(update={"use": "language"}),
        "reference only": plain.model_copy(update={"use": "references"}),
        RECO: plain,
    }
    if settings.refine != "none":
        chosen[f"{RECO} + {settings.refine}"] = settings.model_copy(update={"use": "both"})
    return chosen


def evaluate(
    dataset: Dataset,
    data: str,
    index: str,
    out: str,
    settings: Settings,
    protocol: Protocol,
    segmenter: Trained | None = None,
) -> dict[str, Any]:
    """Builds references for a benchmark's classes from an unlabelled corpus, scores all variants and writes a report.

    Args:
        dataset: The benchmark, checked by `require_countable`.
        data: Its folder, recorded in the results.
        index: URI of the corpus's index.
        out: URI of the output.
        settings: All settings.
        protocol: The evaluation protocol.
        segmenter: A segmenter for the same classes (`trained_for`) to evaluate as well; None for none.

    Returns:
        The content of `results.json`: settings, model, counts, provenance and, for each variant, `miou`,
        `pixel_accuracy` and `iou` by class; for binary masks also the Jaccard index of co-segmenting the images of each
        class. `confusion.parquet` has the number of pixels by variant, true and predicted class.

    Raises:
        RecoError: If an image cannot be used or a label file does not match it.
    """
    trained = {RECO_PLUS: segmenter} if segmenter else {}
    out = storage.absolute(out)
    references = storage.join(out, "references")
    mark_output(out)
    build_references(index, dataset.vocabulary, references, settings)
    # There is a background only if the benchmark has one, also for a single class.
    segmenting = settings.segment.model_copy(update={"background": dataset.vocabulary.background})
    ways = variants(segmenting)
    compared: dict[str, Variant | Trained] = {name: Variant(references, way) for name, way in ways.items()}
    compared |= trained
    measured = score(dataset, compared, protocol, settings)
    results: dict[str, Any] = {
        "benchmark": dataset.name,
        "images": len(dataset.samples),
        "protocol": asdict(protocol),
        "data": storage.absolute(data),
        "index": storage.absolute(index),
        "segmenter": trained[RECO_PLUS].segmenter if trained else None,
        "model": ReferenceBank.open(references).model,
        "settings": settings.model_dump(mode="json", exclude={"placement"}),
        "variants": {name: _figures(matrix, dataset) for name, matrix in measured.matrices.items()},
        **provenance(settings.models.device),
    }
    if all(sample.binary_of is not None for sample in dataset.samples):
        by_class = cosegmentation_jaccard(dataset, references, ways, settings)
        results["cosegmentation"] = {
            name: {"jaccard": float(np.mean(list(values.values()))), "classes": values}
            for name, values in by_class.items()
        }
    storage.write_bytes(storage.join(out, "results.json"), json.dumps(results, indent=2).encode())
    storage.write_table(storage.join(out, "confusion.parquet"), _confusion_table(measured.matrices, dataset))
    name = RECO_PLUS if trained else RECO
    shown = {name: compared[name]}
    write_report(
        storage.join(out, "report"), results, dataset, shown, measured.images[name], protocol, settings
    )
    return results


def trained_for(segmenter: str, dataset: Dataset) -> Trained:
    """Checks that a segmenter has the labels of a benchmark.

    Args:
        segmenter: URI of the segmenter.
        dataset: The benchmark.

    Raises:
        RecoError: If it does not exist or has other labels.
    """
    labels = Segmenter.from_artifact(segmenter).labels
    names = dataset.vocabulary.names
    expected = ["background", *names] if dataset.vocabulary.background else names
    if labels != expected:
        raise OtherModelError(
            f"{segmenter}: was trained for {', '.join(labels[:5])}, ..., but {dataset.name} has "
            f"{', '.join(expected[:5])}, ...: train it with --vocabulary benchmark:{dataset.name}"
        )
    return Trained(storage.absolute(segmenter))


def _figures(matrix: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    figures = scores(matrix)
    return {**figures, "iou": dict(zip(dataset.classes, figures["iou"], strict=True))}


def _confusion_table(matrices: dict[str, np.ndarray], dataset: Dataset) -> pa.Table:
    """The non-zero cells: `variant`, `truth`, `predicted` (null for a prediction outside the classes), `pixels`."""
    predictions = [*dataset.classes, None]
    rows = [
        {
            "variant": variant,
            "truth": dataset.classes[t],
            "predicted": predictions[p],
            "pixels": int(matrix[t, p]),
        }
        for variant, matrix in matrices.items()
        for t, p in zip(*np.nonzero(matrix), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=CONFUSION_SCHEMA)


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
