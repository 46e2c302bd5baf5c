"""Evaluation on Ray: references built without labels, then every variant of the method scored in one pass.

The confusion matrices are integers that add up in any order, so the figures do not depend on the cluster.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reco_ray import storage
from reco_ray.cluster import plan_workers
from reco_ray.config import SegmentSettings, Settings
from reco_ray.console import progress
from reco_ray.corpus.index import build_index
from reco_ray.corpus.load import pixels_of
from reco_ray.corpus.stage import embed_corpus
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.stage import build_references
from reco_ray.errors import RecoError
from reco_ray.evaluation.benchmarks import open_benchmark
from reco_ray.evaluation.dataset import Dataset
from reco_ray.evaluation.metrics import confusion_matrix, scores
from reco_ray.models.dense import DenseModels
from reco_ray.segmentation.segment import segment
from reco_ray.segmentation.stage import LoadWhole
from reco_ray.segmentation.targets import targets_of
from reco_ray.shards import cut, run_shards

_SHARD_SIZE = 16


def variants(settings: SegmentSettings) -> dict[str, SegmentSettings]:
    """What is scored side by side: the ablations, ReCo, and ReCo refined where the settings ask for it."""
    plain = settings.model_copy(update={"refine": "none", "use": "both"})
    chosen = {
        "language only": plain.model_copy(update={"use": "language"}),
        "reference only": plain.model_copy(update={"use": "references"}),
        "ReCo": plain,
    }
    if settings.refine != "none":
        chosen[f"ReCo + {settings.refine}"] = settings
    return chosen


def evaluate(benchmark: str, data: str, corpus: str, out: str, settings: Settings) -> dict[str, Any]:
    """Builds references for a benchmark's classes from an unlabelled corpus and scores every variant.

    Returns:
        What is also written to `results.json`: settings, model, counts and, per variant, `miou`, `pixel_accuracy` and
        `iou` by class.

    Raises:
        RecoError: the data set is not in its official layout, a label file does not match its image.
    """
    dataset = open_benchmark(benchmark, storage.absolute(data))
    embeddings, index, references = (storage.join(out, name) for name in ("embeddings", "index", "references"))
    embed_corpus(corpus, embeddings, settings)
    build_index(embeddings, index)
    build_references(index, dataset.vocabulary, references, settings)
    matrices = score(dataset, references, settings)
    names = dataset.vocabulary.names
    results: dict[str, Any] = {
        "benchmark": benchmark,
        "images": len(dataset.samples),
        "corpus": storage.absolute(corpus),
        "model": ReferenceBank.open(references).model,
        "settings": settings.model_dump(),
        "variants": {},
    }
    for variant, matrix in matrices.items():
        figures = scores(matrix)
        results["variants"][variant] = {**figures, "iou": dict(zip(names, figures["iou"], strict=True))}  # type: ignore[call-overload]
    storage.write_bytes(storage.join(out, "results.json"), json.dumps(results, indent=2).encode())
    return results


def score(dataset: Dataset, references: str, settings: Settings) -> dict[str, np.ndarray]:
    """Segments every sample in every variant: variant -> int64 (m, m + 1) confusion matrix."""
    dense = DenseModels.load(settings.models, seed=settings.seed)
    table = pa.table({"uri": [s.image for s in dataset.samples], "name": [str(n) for n in range(len(dataset.samples))]})
    shards = cut(table, _SHARD_SIZE)
    total: dict[str, np.ndarray] = {}
    kwargs = {"dataset": dataset, "settings": settings, "references": storage.absolute(references)}
    workers = plan_workers(settings.models.device, most=len(shards))
    load = LoadWhole(dense.encoder.transform, settings, dense.encoder.stride)
    with progress("evaluate", len(dataset.samples)) as advance:
        for shard in run_shards(shards, load, EvaluateWorker, kwargs, workers):
            advance(shard["images"])
            for variant, matrix in zip(shard["variants"], shard["matrices"], strict=True):
                total[variant] = total.get(variant, 0) + np.array(matrix, np.int64)
    classes = len(dataset.vocabulary.names)
    return {variant: total[variant].reshape(classes, classes + 1) for variant in variants(settings.segment)}


class EvaluateWorker:
    """Scores the loaded images of a shard against their truth."""

    def __init__(self, *, threads: int, device: str, dataset: Dataset, settings: Settings, references: str) -> None:
        torch.set_num_threads(threads)
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        bank = ReferenceBank.open(references, self._models.fingerprint)
        self._targets = targets_of(bank, settings.segment).to(device)
        self._dataset, self._variants, self._device = dataset, variants(settings.segment), device

    def __call__(self, name: str, rows: pa.Table) -> dict[str, Any]:
        classes = len(self._dataset.vocabulary.names)
        matrices = {variant: np.zeros((classes, classes + 1), np.int64) for variant in self._variants}
        for row in range(rows.num_rows):
            entry = rows.slice(row, 1).drop_columns(["pixels"]).to_pylist()[0]
            if entry["reason"] is not None:
                raise RecoError(f"{entry['uri']}: {entry['reason']}: every image of a benchmark is needed")
            sample = self._dataset.samples[int(entry["name"])]
            truth = self._dataset.truth(sample)
            if truth.shape != (entry["height"], entry["width"]):
                raise RecoError(f"{sample.label}: {truth.shape[1]} x {truth.shape[0]} pixels, but its image is {entry['width']} x {entry['height']}")
            pixels = torch.from_numpy(pixels_of(rows, row).copy())[None].to(self._device)
            for variant, settings in self._variants.items():
                result = segment(self._models, self._targets, pixels, [truth.shape], settings)[0]
                matrices[variant] += confusion_matrix(truth, result.labels.cpu().numpy(), classes)
        return {
            "images": rows.num_rows,
            "variants": list(matrices),
            "matrices": [matrix.reshape(-1).tolist() for matrix in matrices.values()],
        }
