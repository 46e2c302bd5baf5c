"""Co-segmentation measured by itself: the images of a class are its exemplars, and their reference segments them.

No label chooses anything: a pixel is foreground where it scores above the mean of its image. Refinement sees that mean
as a second concept that scores the same everywhere.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reco_ray.cluster import plan_workers
from reco_ray.config import SegmentSettings, Settings
from reco_ray.console import progress
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.references import co_reference
from reco_ray.errors import RecoError
from reco_ray.evaluation.dataset import Dataset
from reco_ray.models.dense import DenseModels
from reco_ray.models.image import ImageTransform
from reco_ray.segmentation.score import concept_scores
from reco_ray.segmentation.segment import Targets, label_scores, score_factors
from reco_ray.shards import run_shards

FOREGROUND = 1


def cosegmentation_jaccard(
    dataset: Dataset, references: str, variants: dict[str, SegmentSettings], settings: Settings
) -> dict[str, dict[str, float]]:
    """Co-segments every class of a dataset of binary masks.

    Args:
        references: URI of the classes' bank, for their words and the context concepts.

    Returns:
        variant -> class -> Jaccard index of foreground and mask, the mean over the class's images.
    """
    dense = DenseModels.load(settings.models, seed=settings.seed)
    shards = {}
    for number, name in enumerate(dataset.classes):
        members = [n for n, sample in enumerate(dataset.samples) if sample.binary_of == number]
        shards[name] = pa.table({"uri": [dataset.samples[n].image for n in members], "number": members})
    kwargs = {"dataset": dataset, "references": references, "variants": variants, "settings": settings}
    load = LoadSquares(dense.encoder.transform, settings)
    workers = plan_workers(settings.models.device, len(shards), settings.placement.evaluate)
    found: dict[str, dict[str, float]] = {variant: {} for variant in variants}
    with progress("cosegment", len(shards)) as advance:
        for shard in run_shards(shards, load, CosegmentWorker, kwargs, workers):
            advance(1)
            for variant, jaccard in shard["jaccard"].items():
                found[variant][shard["class"]] = jaccard
    return {variant: {name: found[variant][name] for name in dataset.classes} for variant in variants}


class LoadSquares:
    """Samples (`number`, `uri`) -> their whole images as squares, as exemplars are."""

    def __init__(self, transform: ImageTransform, settings: Settings) -> None:
        self._transform, self._size = transform, settings.references.image_size
        self._max_pixels = settings.segment.max_pixels

    def __call__(self, shard: pa.Table) -> pa.Table:
        loaded = load_images(
            shard["uri"].to_pylist(),
            lambda image: self._transform.stretch(image, self._size),
            max_pixels=self._max_pixels,
            short_side=self._size,
        )
        return loaded.append_column("number", shard["number"])


class CosegmentWorker:
    """Co-segments a class a shard."""

    def __init__(
        self,
        *,
        threads: int,
        device: str,
        dataset: Dataset,
        references: str,
        variants: dict[str, SegmentSettings],
        settings: Settings,
    ) -> None:
        torch.set_num_threads(threads)
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        self._bank = ReferenceBank.open(references, self._models.fingerprint)
        self._dataset, self._variants, self._settings, self._device = dataset, variants, settings, device

    def __call__(self, name: str, rows: pa.Table) -> dict[str, Any]:
        unusable = rows.filter(rows["reason"].is_valid()).select(["uri", "reason"]).to_pylist()
        if unusable:
            raise RecoError(
                f"{unusable[0]['uri']}: {unusable[0]['reason']}: every image of a benchmark is needed"
            )
        squares = torch.from_numpy(np.stack([pixels_of(rows, row) for row in range(rows.num_rows)]))
        squares = squares.to(self._device)
        targets = self._targets(name, squares)
        jaccards: dict[str, list[float]] = {variant: [] for variant in self._variants}
        entries = rows.select(["number", "height", "width"]).to_pylist()
        for pixels, entry in zip(squares, entries, strict=True):
            sample = self._dataset.samples[entry["number"]]
            mask = self._dataset.truth(sample, (entry["height"], entry["width"])) == sample.binary_of
            for variant, foreground in self._foregrounds(targets, pixels, mask.shape).items():
                jaccards[variant].append(jaccard(mask, foreground))
        return {"class": name, "jaccard": {variant: float(np.mean(j)) for variant, j in jaccards.items()}}

    def _targets(self, name: str, squares: torch.Tensor) -> Targets:
        """The class's reference, from its own images."""
        names, context = self._bank.context_names, self._bank.context_references
        if name in names:  # a context concept has those before it as its own context
            context = context[: names.index(name)]
        if context.ndim == 3:
            context = context.mean(dim=1)
        text = self._bank.text_embeddings[self._bank.vocabulary.names.index(name)].to(self._device)
        result = co_reference(
            self._models,
            squares,
            text,
            context.to(self._device) if len(context) else None,
            self._settings.references,
        )
        label = torch.tensor([FOREGROUND], device=self._device)
        return Targets(result.reference[None], text[None], label, background=True)

    def _foregrounds(
        self, targets: Targets, pixels: torch.Tensor, size: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        encoded = self._models.encode(pixels[None])
        found = {}
        for variant, settings in self._variants.items():
            factors = score_factors(encoded, targets, settings)
            scores = concept_scores(**factors, output_size=(pixels.shape[0], pixels.shape[1]))[0]
            above_mean = settings.model_copy(update={"background_threshold": scores.mean().item()})
            labels = label_scores(scores, targets, pixels, (size[0], size[1]), above_mean).labels
            found[variant] = (labels == FOREGROUND).cpu().numpy()
        return found


def jaccard(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Intersection over union of two masks, bool (H, W); 1 if both are empty."""
    union = (truth | predicted).sum()
    return float((truth & predicted).sum() / union) if union else 1.0
