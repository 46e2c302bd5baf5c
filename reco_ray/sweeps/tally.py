"""Counts on segmented images, and the scores computed from them. Pure functions; `shared_tasks.py` runs them on Ray."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reco_ray.config import SegmentSettings, Settings
from reco_ray.errors import UnreadableError
from reco_ray.evaluation.confusion import confusion_matrix, scores
from reco_ray.evaluation.dataset import Dataset
from reco_ray.models.dense import DenseFeatures
from reco_ray.segmentation.score import concept_scores
from reco_ray.segmentation.segment import score_factors, segment, target_logits
from reco_ray.segmentation.target_set import Targets
from reco_ray.segmentation.targets import label_names, targets_of
from reco_ray.sweeps.encoded_images import Encoded, features_of
from reco_ray.sweeps.scores import chance_corrected_agreement, label_counts, prediction_entropy
from reco_ray.sweeps.trial_references import TrialBank


@dataclass(frozen=True)
class Tally:
    """Counts over a set of images. Tallies of disjoint sets can be added.

    Attributes:
        images: Number of images that could be used.
        entropy: Sum of the images' prediction entropies; None if there is a single target.
        confusion: int64 (m, m + 1) confusion matrix; None without labels.
        agreement: int64 (l, l), how often each pair of labels occurs in an image and its augmented view; None if
            there are no augmented views.
    """

    images: int
    entropy: float | None
    confusion: np.ndarray | None
    agreement: np.ndarray | None

    def __add__(self, other: "Tally") -> "Tally":
        def total(name: str) -> Any:
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None or theirs is None else mine + theirs

        return Tally(*(total(name) for name in ("images", "entropy", "confusion", "agreement")))


def tally(
    settings: Settings,
    bank: TrialBank,
    labels: Dataset | None,
    augmented: bool,
    sample: DenseFeatures | None,
    device: str,
    *encoded: Encoded,
) -> Tally:
    """Segments images and counts what the scores are computed from. Unlabelled images that cannot be used are skipped.

    Args:
        settings: Settings of the trial.
        bank: References to segment with.
        labels: Data set whose samples are the images, in the same order; None for unlabelled images.
        augmented: Whether `encoded` holds the images followed by their augmented views.
        sample: Features over which scores are calibrated; None with `segment.calibrate=0`.
        device: Torch device.
        *encoded: The encoded images.

    Raises:
        RecoError: If an image of a labelled data set cannot be used, or a label file does not match it.
    """
    options = settings.segment
    targets = targets_of(bank.references, options, sample).to(device)
    of_model = None if sample is None else sample.classes
    count = len(label_names(bank.references, options))
    images = encoded[: len(encoded) // 2] if augmented else encoded
    classes = 0 if labels is None else len(labels.classes)
    confusion = np.zeros((classes, classes + 1), np.int64)
    agreement = torch.zeros(count, count, dtype=torch.int64)
    used, entropy = 0, 0.0
    for number, image in enumerate(images):
        if image.reason is not None or image.pixels is None:
            if labels is not None:
                raise UnreadableError(f"{image.uri}: {image.reason}: every image of a benchmark is needed")
            continue
        truth = None
        if labels is not None:
            truth = labels.truth(labels.samples[number], image.size)
        size = image.pixels.shape[:2] if truth is None else truth.shape
        features = features_of([image], device, of_model)
        used += 1
        if len(targets.labels) > 1:
            entropy += prediction_entropy(_shares(features, targets, options))
        if truth is None and not augmented:
            continue
        predicted = _labels(image, features, targets, size, options)
        if labels is not None and truth is not None:
            found = np.array(labels.class_of)[predicted.numpy()]
            confusion += confusion_matrix(truth, found, classes)
        if augmented:
            view = encoded[len(images) + number]
            again = _labels(view, features_of([view], device, of_model), targets, size, options)
            agreement += label_counts(predicted, again.flip(1), count)
    return Tally(
        used,
        entropy if len(targets.labels) > 1 else None,
        confusion if labels is not None else None,
        agreement.numpy() if augmented else None,
    )


def _shares(features: DenseFeatures, targets: Targets, options: SegmentSettings) -> torch.Tensor:
    """(m, h, w): probabilities of the targets if they are calibrated, else their scores."""
    if targets.calibration is not None:
        return target_logits(features, targets, options).softmax(0)
    return concept_scores(**score_factors(features, targets, options))[0]


def _labels(
    image: Encoded, features: DenseFeatures, targets: Targets, size: tuple[int, int], options: SegmentSettings
) -> torch.Tensor:
    """int64 (H, W), label ids, on the CPU."""
    assert image.pixels is not None, "an image to segment keeps its pixels"
    pixels = torch.from_numpy(image.pixels.copy())[None].to(features.visual.device)
    return segment(_KnownFeatures(features), targets, pixels, [size], options)[0].labels.long().cpu()


@dataclass(frozen=True)
class _KnownFeatures:
    """Stands in for the dense models, returning features computed before."""

    features: DenseFeatures

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        return self.features


def figures(bank: TrialBank, counted: Tally, measured: list[str]) -> dict[str, float | None]:
    """The scores by name; None where one is undefined: a single exemplar, a single concept or no usable image."""
    found: dict[str, float | None] = {
        "seed_agreement": bank.seed_agreement,
        "support_margin": bank.support_margin,
        "prediction_entropy": None,
        "miou": None,
        "augmentation_agreement": None,
    }
    if counted.images:
        if counted.entropy is not None:
            found["prediction_entropy"] = counted.entropy / counted.images
        if counted.confusion is not None:
            found["miou"] = scores(counted.confusion)["miou"]
        if counted.agreement is not None:
            found["augmentation_agreement"] = chance_corrected_agreement(torch.from_numpy(counted.agreement))
    return {name: found[name] for name in measured}
