"""Calibrated scores: evidence of three kinds, made comparable between concepts and added up. Torch only.

ReCo multiplies two similarities, and compares the products of different concepts although those of one concept may be
higher everywhere than those of another. Here each kind of evidence is standardised to mean zero and variance one per
concept over unlabelled images, as in score normalisation for retrieval and speaker verification. The weighted sum is
the logit of a concept; its softmax is a probability. No labels are needed.

- reference: cosine of a location and the concept's reference (ReCo, section 3.4)
- language: for a classifier, the log-likelihood of the concept under its logits (`mixture_evidence`); else the cosine
  with the text
- image: the language evidence of the whole image, which says what a photograph is of

A concept that has examples but no words (its text embedding is zero) has reference evidence only. A stand-in for its
words, such as what the model says about its examples, would bring in what else they show. The reference takes over
the weight of the words, so that the concept's logits are spread like those of the others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from reco_ray.cosegmentation.attention import cosine_maps
from reco_ray.models.dense import DenseFeatures
from reco_ray.segmentation.calibration import ScoreCalibration, calibration, moments
from reco_ray.segmentation.score import reference_cosines
from reco_ray.segmentation.target_set import BACKGROUND, Targets

REFERENCE_WEIGHT, LANGUAGE_WEIGHT = 0.5, 1.0  # that of the image is measured, see `ScoreCalibration`
# Softmax temperatures of the cosine of a class and a concept: over classes, and over concepts.
CLASS_TEMPERATURE, CONCEPT_TEMPERATURE = 0.08, 0.06
LEAST_DEVIATION = 0.01  # for concepts with constant evidence, such as over identical images
# Quantiles, over all locations of the calibration images, of the best concept's logit: below the first is background; a
# concept whose highest logit in an image is below the second does not occur there.
LEAST_QUANTILE, PRESENT_QUANTILE = 0.6, 0.8


def evidence_maps(encoded: DenseFeatures, targets: Targets) -> list[Tensor]:
    """Reference, language and image evidence of every target.

    Without a background every location shows one of the targets, and the language evidence of a classifier is a
    posterior. With a background it is not normalised, so that it also says whether there is any object at all, as
    energy does in the detection of unknown classes (Liu et al., NeurIPS 2020).

    Args:
        encoded: features of b images.
        targets: m targets.

    Returns:
        (b, m, h, w), (b, m, h', w') and (b, m, 1, 1), float32.
    """
    reference = reference_cosines(encoded.visual, targets.references)
    if encoded.logits is None or encoded.classes is None:
        language = cosine_maps(
            "language_features", encoded.language, "text_embeddings", targets.text_embeddings
        )
        whole = language.mean((2, 3)) if encoded.image is None else encoded.image @ targets.text_embeddings.T
        return [reference, language, whole[:, :, None, None]]
    worded = has_words(targets)
    weights = class_weights(encoded.classes, targets.text_embeddings[worded])
    language = mixture_evidence(encoded.logits, weights, normalised=not targets.background)
    pooled = encoded.logits.mean((2, 3)) if encoded.image is None else encoded.image
    whole = mixture_evidence(pooled[:, :, None, None], weights, normalised=True)
    return [reference, _of_all(language, worded), _of_all(whole, worded)]


def has_words(targets: Targets) -> Tensor:
    """Which targets have words, bool (m,); the text embedding of the others is zero."""
    return targets.text_embeddings.any(1)


def _of_all(maps: Tensor, worded: Tensor) -> Tensor:
    """Adds maps of zeros for the targets without words: (b, k, h, w) -> (b, m, h, w)."""
    if worded.all():
        return maps
    everything = maps.new_zeros(len(maps), len(worded), *maps.shape[2:])
    everything[:, worded] = maps
    return everything


def class_weights(classes: Tensor, text_embeddings: Tensor) -> Tensor:
    """How much each class of a classifier stands for each concept.

    The softmax over classes of their cosine with the concept; classes that are nearer to another concept count less.

    Args:
        classes: (k, d) unit rows.
        text_embeddings: (m, d) unit rows.

    Returns:
        (k, m) float32, columns sum to 1.
    """
    cosines = classes.float() @ text_embeddings.float().T
    weights = (cosines / CLASS_TEMPERATURE).softmax(0) * (cosines / CONCEPT_TEMPERATURE).softmax(1)
    return weights / weights.sum(0, keepdim=True).clamp_min(1e-30)


def mixture_evidence(logits: Tensor, weights: Tensor, *, normalised: bool) -> Tensor:
    """Log-likelihood of each concept: log of the sum over classes of weight times exp(logit).

    Args:
        logits: (b, k, h, w) float32.
        weights: (k, m), columns sum to 1.
        normalised: divide by the sum of exp(logit), which gives the log-posterior.

    Returns:
        (b, m, h, w) float32.
    """
    highest = logits.amax(1, keepdim=True)
    likelihoods = (logits - highest).exp()
    mixed = torch.einsum("bkhw,km->bmhw", likelihoods, weights).clamp_min(1e-20).log()
    return mixed - likelihoods.sum(1, keepdim=True).log() if normalised else mixed + highest


def calibrate(sample: DenseFeatures, targets: Targets, use: str = "both") -> ScoreCalibration:
    """Measures the evidence of targets over a sample of images.

    Args:
        sample: features of n images, from `sample_features`.
        targets: m targets.
        use: as of `calibrated_logits`.
    """
    maps = evidence_maps(sample, targets)
    statistics = calibration(moments(maps))
    means, deviations = statistics.means, statistics.deviations.clamp_min(LEAST_DEVIATION)
    per_image = maps[0].flatten(2)
    between, within = per_image.mean(2).var(0, correction=0), per_image.var(2, correction=0).mean(0)
    share = float((between / (between + within).clamp_min(LEAST_DEVIATION**2)).mean())
    if use == "both":
        # A smaller deviation is a larger weight.
        deviations[0, ~has_words(targets)] *= REFERENCE_WEIGHT / (REFERENCE_WEIGHT + LANGUAGE_WEIGHT)
    found = ScoreCalibration(means, deviations, share)
    if not targets.background:
        return found
    logits = calibrated_logits(maps, found, use)
    best = logits[:, targets.labels != BACKGROUND].amax(1).flatten()
    least, present = (float(best.quantile(share)) for share in (LEAST_QUANTILE, PRESENT_QUANTILE))
    return ScoreCalibration(means, deviations, found.image_weight, least, present)


def calibrated_logits(maps: list[Tensor], measured: ScoreCalibration, use: str = "both") -> Tensor:
    """Adds up standardised evidence.

    Args:
        maps: of `evidence_maps`.
        measured: of the same targets.
        use: "both", "references" or "language", as `segment.use`.

    Returns:
        (b, m, h, w) float32 at the finer resolution of the evidence.
    """
    weights = (REFERENCE_WEIGHT, LANGUAGE_WEIGHT, measured.image_weight)
    used = {"both": (0, 1, 2), "references": (0,), "language": (1, 2)}[use]
    size = max((tuple(maps[factor].shape[2:]) for factor in used), key=lambda sides: sides[0] * sides[1])
    total = torch.zeros(*maps[0].shape[:2], *size, device=maps[0].device)
    for factor in used:
        standard = weights[factor] * measured.standardise(factor, maps[factor])
        if standard.shape[2:] != size and factor != 2:
            standard = F.interpolate(standard, size, mode="bilinear", align_corners=False)
        total += standard
    return total
