"""Segments images: encode, score, refine, label. Torch only."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from reco_ray.config import SegmentSettings
from reco_ray.models.dense import DenseFeatures
from reco_ray.segmentation.background import background_level
from reco_ray.segmentation.evidence import calibrated_logits, evidence_maps
from reco_ray.segmentation.refine import refine, refines_logits
from reco_ray.segmentation.score import concept_scores, label_map
from reco_ray.segmentation.target_set import BACKGROUND, Targets


class PixelEncoder(Protocol):
    """Interface of `DenseModels` that segmentation uses."""

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        """Encodes images: uint8 (b, H, W, 3) -> features."""


@dataclass(frozen=True)
class SegmentedImage:
    """The labels of one image.

    Attributes:
        labels: label ids, int64 (H, W).
        scores: of the labels, float32 (H, W); probabilities if the scores are calibrated.
    """

    labels: torch.Tensor
    scores: torch.Tensor


def segment(
    models: PixelEncoder,
    targets: Targets,
    pixels: torch.Tensor,
    output_sizes: list[tuple[int, int]],
    settings: SegmentSettings,
) -> list[SegmentedImage]:
    """Segments images of one size (ReCo, section 3.4).

    Args:
        models: the dense models.
        targets: of m labels.
        pixels: uint8 (b, H, W, 3), sides multiples of the encoder's stride.
        output_sizes: (height, width) of each result.
        settings: of the segmentation.
    """
    encoded = models.encode(pixels)
    results = []
    for number, size in enumerate(output_sizes):
        one = encoded.select(number)
        results.append(segment_features(one, targets, pixels[number], size, settings))
    return results


def segment_features(
    encoded: DenseFeatures,
    targets: Targets,
    pixels: torch.Tensor,
    size: tuple[int, int],
    settings: SegmentSettings,
) -> SegmentedImage:
    """As `segment`, for one image with features that are already computed.

    Args:
        encoded: features of the image, with b = 1.
        targets: of m labels.
        pixels: uint8 (H, W, 3).
        size: (height, width) of the result.
        settings: of the segmentation.
    """
    if targets.calibration is not None:
        logits = target_logits(encoded, targets, settings)
        return label_logits(logits, targets, encoded.visual[0], pixels, size, settings)
    if settings.prefilter:
        targets = targets.select(prefilter(encoded, targets, settings.prefilter))
    factors = score_factors(encoded, targets, settings)
    if settings.refine == "none":
        threshold = settings.background_threshold if targets.background else 0.0
        winner, best = (maps[0] for maps in label_map(**factors, output_size=size))
        return SegmentedImage(targets.labels[winner.long()].masked_fill(best < threshold, BACKGROUND), best)
    # Refined at the size of `pixels`, and only for targets in the unrefined label map, to save time and memory.
    working = (pixels.shape[0], pixels.shape[1])
    present = label_map(**factors, output_size=working).labels.unique().long()
    scores = concept_scores(**factors, output_size=working, concepts=present)[0]
    return label_scores(scores, targets.select(present), pixels, size, settings)


def target_logits(encoded: DenseFeatures, targets: Targets, settings: SegmentSettings) -> torch.Tensor:
    """Calibrated logits of the targets at every location of one image, (m, h, w) float32."""
    assert targets.calibration is not None, "the targets are not calibrated"
    return calibrated_logits(evidence_maps(encoded, targets), targets.calibration, settings.use)[0]


def label_logits(
    logits: torch.Tensor,
    targets: Targets,
    features: torch.Tensor | None,
    pixels: torch.Tensor,
    size: tuple[int, int],
    settings: SegmentSettings,
) -> SegmentedImage:
    """Refines calibrated logits, if enabled in the settings, and computes labels.

    Args:
        logits: of each target, (m, h, w).
        targets: of m labels, calibrated.
        features: as for `target_probabilities`.
        pixels: uint8 (H, W, 3).
        size: (height, width) of the result.
        settings: of the segmentation.
    """
    maps, labels = target_probabilities(logits, targets, features, pixels, settings)
    return best_target(maps, labels, targets, size, settings)


def target_probabilities(
    logits: torch.Tensor,
    targets: Targets,
    features: torch.Tensor | None,
    pixels: torch.Tensor,
    settings: SegmentSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the targets that the image shows, refined if enabled in the settings.

    Args:
        logits: of each target, (m, h, w).
        targets: of m labels, calibrated.
        features: dense visual features of the image, (c, h', w'); None: regions are compared by colour only.
        pixels: uint8 (H, W, 3).
        settings: of the segmentation.

    Returns:
        Probabilities, (k, H, W), which sum to 1, and the label id of each of the k targets, int64 (k,). Several may
        have that of the background.
    """
    assert targets.calibration is not None, "the targets are not calibrated"
    # To save time and memory, only targets that are among the best two somewhere are refined.
    present = logits.topk(min(2, len(logits)), dim=0).indices.unique()
    if settings.prefilter:
        present = present[
            _likely(logits[present].flatten(1).amax(1), targets.select(present), settings.prefilter)
        ]
    targets = targets.select(present)
    image, labels = pixels.permute(2, 0, 1), targets.labels
    maps = _resized(logits[present], (pixels.shape[0], pixels.shape[1]))
    of_logits = refines_logits(settings.refine)
    if of_logits:
        maps = refine(maps, image, settings.refine, features)
    if targets.background:
        maps, labels = _with_background(maps, targets)
    probabilities = maps.softmax(0)
    if not of_logits:
        probabilities = refine(probabilities, image, settings.refine, features)
    return probabilities, labels


def best_target(
    maps: torch.Tensor,
    labels: torch.Tensor,
    targets: Targets,
    size: tuple[int, int],
    settings: SegmentSettings,
) -> SegmentedImage:
    """The most probable target at every pixel.

    Args:
        maps: of `target_probabilities`.
        labels: of the same.
        targets: of all labels.
        size: (height, width) of the result.
        settings: of the segmentation.
    """
    found = _best(maps, labels, size)
    if targets.background:
        unsure = found.scores < settings.background_threshold
        return SegmentedImage(found.labels.masked_fill(unsure, BACKGROUND), found.scores)
    return found


def _with_background(maps: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Drops concepts that do not occur in the image, and adds the background as one more target.

    Args:
        maps: logits of each target, (m, H, W).
        targets: of m labels, calibrated.

    Returns:
        Logits and labels of the targets that remain.
    """
    assert targets.calibration is not None, "the targets are not calibrated"
    concepts = targets.labels != BACKGROUND
    if not concepts.any():
        return maps, targets.labels
    best = maps[concepts].amax(0)
    level = background_level(best, targets.calibration.least)
    everything = torch.cat([maps, torch.full_like(maps[:1], level)])
    winner = everything.argmax(0)
    highest = torch.stack([torch.where(winner == n, maps[n], -torch.inf).amax() for n in range(len(maps))])
    occurs = ~concepts | (highest >= targets.calibration.present)
    labels = torch.cat([targets.labels[occurs], targets.labels.new_tensor([BACKGROUND])])
    return everything[torch.cat([occurs, occurs.new_ones(1)])], labels


def score_factors(encoded: DenseFeatures, targets: Targets, settings: SegmentSettings) -> dict[str, Any]:
    """The arguments of `concept_scores` and `label_map`, according to `settings.use`."""
    factors: dict[str, Any] = {"features": None, "references": None}
    if settings.use != "language":
        factors |= {"features": encoded.visual, "references": targets.references}
    if settings.use != "references":
        factors |= {"language_features": encoded.language, "text_embeddings": targets.text_embeddings}
    return factors


def label_scores(
    scores: torch.Tensor,
    targets: Targets,
    pixels: torch.Tensor,
    size: tuple[int, int],
    settings: SegmentSettings,
) -> SegmentedImage:
    """Refines scores, if enabled in the settings, and computes labels.

    Args:
        scores: of each target, (m, H, W).
        targets: of m labels.
        pixels: uint8 (H, W, 3).
        size: (height, width) of the result.
        settings: of the segmentation.
    """
    labels = targets.labels
    if targets.background:
        # The threshold is one more target with a constant score, so that the background is refined like the others.
        scores = torch.cat([scores, torch.full_like(scores[:1], settings.background_threshold)])
        labels = torch.cat([labels, labels.new_tensor([BACKGROUND])])
    return _best(refine(scores, pixels.permute(2, 0, 1), settings.refine), labels, size)


def _best(maps: torch.Tensor, labels: torch.Tensor, size: tuple[int, int]) -> SegmentedImage:
    """The label of the highest score at every pixel, from maps (m, h, w) of m labels, at another size."""
    best = torch.full(size, -torch.inf, device=maps.device)
    winner = torch.zeros(size, dtype=torch.long, device=maps.device)
    for number in range(len(maps)):  # one at a time at full size, to save memory
        resized = _resized(maps[number : number + 1], size)[0]
        winner.masked_fill_(resized > best, number)
        best = torch.maximum(best, resized)
    return SegmentedImage(labels[winner], best)


def _resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(m, h, w) -> (m, *size)."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def prefilter(encoded: DenseFeatures, targets: Targets, keep: int) -> torch.Tensor:
    """Indices of the `keep` targets with the highest text similarity at any location, and of all targets of the
    background and without words."""
    similarity = torch.einsum("bdhw,md->mhw", encoded.language, targets.text_embeddings)
    wordless = ~targets.text_embeddings.any(1)
    highest = similarity.flatten(1).amax(1).masked_fill(wordless, torch.inf)
    return _likely(highest, targets, keep + int(wordless.sum()))


def _likely(highest: torch.Tensor, targets: Targets, keep: int) -> torch.Tensor:
    """Indices of the `keep` concepts with the highest values, (m,), and of all background targets."""
    if targets.background:
        of_background = targets.labels == BACKGROUND
        highest = highest.masked_fill(of_background, torch.inf)
        keep += int(of_background.sum())
    return highest.topk(min(keep, len(highest))).indices.sort().values
