"""Evaluates co-segmentation alone: the images of a class are its exemplars, and their reference segments them.

No threshold is chosen with labels: a pixel is foreground if it scores above the mean of its image. Refinement treats
that mean as the score of a second concept at every pixel.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from reco_ray.config import SegmentSettings, Settings
from reco_ray.corpus.load import ImageLoader, pixels_of
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.references import reference_from_pixels
from reco_ray.distributed.parts import Report, Worker
from reco_ray.distributed.pool import stage_pool
from reco_ray.errors import UnreadableError
from reco_ray.evaluation.dataset import Dataset
from reco_ray.models.dense import DenseModels
from reco_ray.models.description import describe_dense_models
from reco_ray.models.image import ImageTransform
from reco_ray.segmentation.score import concept_scores
from reco_ray.segmentation.segment import label_scores, score_factors
from reco_ray.segmentation.target_set import Targets

FOREGROUND = 1


def cosegmentation_jaccard(
    dataset: Dataset, references: str, variants: dict[str, SegmentSettings], settings: Settings
) -> dict[str, dict[str, float]]:
    """Co-segments every class of a dataset of binary masks.

    Args:
        dataset: The data set.
        references: URI of the classes' references, for their text embeddings and context concepts.
        variants: Name -> settings of segmentation.
        settings: All settings.

    Returns:
        Variant -> class -> Jaccard index of foreground and mask, averaged over the images of the class.
    """
    dense = describe_dense_models(settings.models, settings.seed)
    shards = {}
    for number, name in enumerate(dataset.classes):
        members = [n for n, sample in enumerate(dataset.samples) if sample.binary_of == number]
        shards[name] = pa.table({"uri": [dataset.samples[n].image for n in members], "number": members})
    load = square_loader(dense.transform, settings)
    worker = CosegmentWorker(dataset, references, variants, settings)
    found: dict[str, dict[str, float]] = {variant: {} for variant in variants}
    device, placement = settings.models.device, settings.placement.evaluate
    with stage_pool("cosegment", device, placement, len(shards)) as pool:
        for report in pool.shards(shards, load, worker):
            for variant, value in report.jaccard.items():
                found[variant][report.name] = value
    return {variant: {name: found[variant][name] for name in dataset.classes} for variant in variants}


def square_loader(transform: ImageTransform, settings: Settings) -> ImageLoader:
    """Loads samples (`number`, `uri`), stretching the whole image to a square as for exemplars."""
    size = settings.references.image_size
    return ImageLoader(
        partial(transform.stretch, size=size), short_side=size, max_pixels=settings.segment.max_pixels
    )


@dataclass(frozen=True)
class CosegmentReport(Report):
    """The figures of one class.

    Attributes:
        name: Name of the class.
        jaccard: Variant -> Jaccard index, averaged over the images of the class.
    """

    name: str
    jaccard: dict[str, float]


class CosegmentWorker(Worker[CosegmentReport]):
    """Co-segments one class per shard."""

    report = CosegmentReport

    def __init__(
        self, dataset: Dataset, references: str, variants: dict[str, SegmentSettings], settings: Settings
    ) -> None:
        self._dataset, self._references = dataset, references
        self._variants, self._settings = variants, settings

    def set_up(self, device: str) -> None:
        """Loads the dense models and the references."""
        settings = self._settings
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        self._bank = ReferenceBank.open(self._references, self._models.fingerprint)
        self._device = device

    def work(self, name: str, rows: pa.Table) -> CosegmentReport:
        """Measures one class."""
        unusable = rows.filter(rows["reason"].is_valid()).select(["uri", "reason"]).to_pylist()
        if unusable:
            raise UnreadableError(
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
        return CosegmentReport(1, name, {variant: float(np.mean(j)) for variant, j in jaccards.items()})

    def _targets(self, name: str, squares: torch.Tensor) -> Targets:
        """The reference of a class, computed from its own images."""
        names, context = self._bank.context_names, self._bank.context_references
        if name in names:  # the context of a context concept are those before it
            context = context[: names.index(name)]
        if context.ndim == 3:
            context = context.mean(dim=1)
        text = self._bank.text_embeddings[self._bank.vocabulary.names.index(name)].to(self._device)
        result = reference_from_pixels(
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
    """Intersection over union of two bool masks (H, W); 1 if both are empty."""
    union = (truth | predicted).sum()
    return float((truth & predicted).sum() / union) if union else 1.0
