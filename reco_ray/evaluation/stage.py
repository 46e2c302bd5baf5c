"""The evaluation stage: builds references without labels, scores all variants, and writes the results."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from reco_ray.config import SegmentSettings, Settings
from reco_ray.corpus.own_output import mark_output
from reco_ray.cosegmentation.bank import SAMPLE, ReferenceBank
from reco_ray.cosegmentation.stage import build_references
from reco_ray.errors import OtherModelError
from reco_ray.evaluation.compare import Trained, Variant
from reco_ray.evaluation.dataset import BACKGROUND, Dataset
from reco_ray.evaluation.evaluation_protocol import Protocol
from reco_ray.evaluation.evaluation_report import write_report
from reco_ray.evaluation.jaccard import cosegmentation_jaccard
from reco_ray.evaluation.provenance import provenance
from reco_ray.evaluation.score_variants import sample_images, score
from reco_ray.files import storage
from reco_ray.outcome import EvaluateResult
from reco_ray.training import Segmenter

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
) -> EvaluateResult:
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
        `results`, as in `results.json`: settings, model, counts, provenance, the figures of each variant
        (`VariantScores.figures`) and, for binary masks, the Jaccard index of co-segmenting the images of each class.
        `confusion.parquet` has the number of pixels by variant, true and predicted class; for binary masks,
        `confusion_with_background.parquet` has the same with the background as a class.

    Raises:
        RecoError: If an image cannot be used or a label file does not match it.
    """
    trained = {RECO_PLUS: segmenter} if segmenter else {}
    out = storage.absolute(out)
    references = storage.join(out, "references")
    mark_output(out)
    build_references(index, dataset.vocabulary, references, settings)
    ways = variants(settings.segment)
    compared: dict[str, Variant | Trained] = {name: Variant(references, way) for name, way in ways.items()}
    compared |= trained
    sample = sample_images(dataset, protocol, settings, storage.join(out, SAMPLE))
    measured = score(dataset, compared, protocol, settings, sample)
    results: dict[str, Any] = {
        "benchmark": dataset.name,
        "images": len(dataset.samples),
        "protocol": asdict(protocol),
        "data": storage.absolute(data),
        "index": storage.absolute(index),
        "segmenter": trained[RECO_PLUS].segmenter if trained else None,
        "model": ReferenceBank.open(references).model,
        "settings": settings.model_dump(mode="json", exclude={"placement"}),
        "variants": {name: measured.figures(name) for name in compared},
        **provenance(settings.models.device),
    }
    if dataset.binary:
        by_class = cosegmentation_jaccard(dataset, references, ways, settings)
        results["cosegmentation"] = {
            name: {"jaccard": float(np.mean(list(values.values()))), "classes": values}
            for name, values in by_class.items()
        }
    results_file = storage.join(out, "results.json")
    storage.write_json(results_file, results)
    tables = {"confusion.parquet": _confusion_table(measured.matrices, dataset.classes)}
    if dataset.binary and dataset.classes_with_background:
        table = _confusion_table(measured.with_background, dataset.classes_with_background)
        tables["confusion_with_background.parquet"] = table
    for file, table in tables.items():
        storage.write_table(storage.join(out, file), table)
    name = RECO_PLUS if trained else RECO
    shown = {name: compared[name]}
    report = write_report(
        storage.join(out, "report"),
        results,
        dataset,
        shown,
        measured.images[name],
        protocol,
        settings,
        sample,
    )
    return EvaluateResult("evaluate", out, results=results, report=report, file=results_file)


def trained_for(segmenter: str, dataset: Dataset) -> Trained:
    """Checks that a segmenter has the labels of a benchmark; for binary masks with a background or without.

    Args:
        segmenter: URI of the segmenter.
        dataset: The benchmark.

    Raises:
        RecoError: If it does not exist or has other labels.
    """
    labels = Segmenter.from_artifact(segmenter).labels
    names = dataset.vocabulary.names
    expected = [BACKGROUND, *names] if dataset.vocabulary.background else names
    if labels != expected and not (dataset.binary and labels == [BACKGROUND, *names]):
        raise OtherModelError(
            f"{segmenter}: was trained for {', '.join(labels[:5])}, ..., but {dataset.name} has "
            f"{', '.join(expected[:5])}, ...: train it with --vocabulary benchmark:{dataset.name}"
        )
    return Trained(storage.absolute(segmenter))


def _confusion_table(matrices: dict[str, np.ndarray], classes: list[str]) -> pa.Table:
    """The non-zero cells: `variant`, `truth`, `predicted` (null for a prediction outside the classes), `pixels`."""
    predictions = [*classes, None]
    rows = [
        {
            "variant": variant,
            "truth": classes[t],
            "predicted": predictions[p],
            "pixels": int(matrix[t, p]),
        }
        for variant, matrix in matrices.items()
        for t, p in zip(*np.nonzero(matrix), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=CONFUSION_SCHEMA)
