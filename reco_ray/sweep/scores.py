"""Scores that tell good settings from bad ones without a label. Torch only.

Two look at how a concept's reference came about, two at what the references make of images. None of them knows what is
right: docs/sweeps.md has how well each of them ranks settings where labels were there to check.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def seed_agreement(seed_features: Tensor) -> float:
    """How alike the seeds of a concept's exemplars are: the mean cosine over all pairs of different exemplars.

    Seeds that show the same thing agree; an exemplar that does not show the concept has a seed that agrees with none.

    Args:
        seed_features: (n, c) floating point, n at least 2, of any scale.

    Returns:
        In [-1, 1], higher is better; a seed of zeros has a cosine of 0 with everything.

    Raises:
        ValueError: another shape, or a single seed, which has no pair.

    Example:
        >>> seed_agreement(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]))
        0.3333333333333333
    """
    if seed_features.ndim != 2 or len(seed_features) < 2:
        raise ValueError(f"seed_features: must be (n, c) with n >= 2, got {tuple(seed_features.shape)}")
    unit = F.normalize(seed_features.double(), dim=1)
    n = len(unit)
    # The squared length of the sum holds every pair twice, and every seed with itself.
    pairs = unit.sum(dim=0).square().sum() - unit.square().sum()
    return float(pairs / (n * (n - 1)))


def support_margin(support: Tensor) -> float:
    """How far the seed stands out of its image: 1 - mean / maximum of the support map, averaged over the exemplars.

    Relative, because the weights that supports are multiplied with scale whole maps: with context elimination all
    supports are some thirty times smaller.

    Args:
        support: (n, h, w) floating point, as `Cosegmentation.support`.

    Returns:
        1 where all support is in one of many places, 0 where it is everywhere the same (or nowhere above zero); above 1
        only where the mean is negative. Higher is better.

    Raises:
        ValueError: another shape, or nothing in it.

    Example:
        >>> support_margin(torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]]))
        0.375
    """
    if support.ndim != 3 or support.numel() == 0:
        raise ValueError(f"support: must be (n, h, w), none of them 0, got {tuple(support.shape)}")
    maps = support.flatten(1).double()
    best = maps.amax(dim=1)
    margin = torch.where(best > 0, 1 - maps.mean(dim=1) / best.clamp_min(1e-12), 0.0)
    return float(margin.mean())


def prediction_entropy(scores: Tensor) -> float:
    """How undecided the concepts' scores are: the entropy of the scores divided by their sum, over that of a tie.

    Args:
        scores: (m, h, w) floating point, not negative, m at least 2, before refinement: `concept_scores` of one image.

    Returns:
        The mean over the locations, in [0, 1]: 0 where one concept has all, 1 where all score the same or nothing.
        Lower is better. Scores of sigmoids are never far from a tie, so differences are in the later digits.

    Raises:
        ValueError: another shape, fewer than two concepts, or a negative score.

    Example:
        >>> prediction_entropy(torch.tensor([[[1.0, 0.5]], [[0.0, 0.5]]]))
        0.5
    """
    if scores.ndim != 3 or scores.shape[0] < 2 or scores.numel() == 0:
        raise ValueError(f"scores: must be (m, h, w) with m >= 2, got {tuple(scores.shape)}")
    if scores.min() < 0:
        raise ValueError(f"scores: must not be negative, the lowest is {scores.min().item():g}")
    total = scores.double().sum(dim=0, keepdim=True)
    shares = torch.where(total > 0, scores.double() / total.clamp_min(1e-300), 1 / len(scores))
    entropy = torch.special.entr(shares).sum(dim=0)
    return float(entropy.mean() / torch.log(torch.tensor(float(len(scores)), dtype=torch.double)))


def label_counts(first: Tensor, second: Tensor, labels: int) -> Tensor:
    """How often each pair of labels meets: int64 (labels, labels), rows are the first map's. They add up over images.

    Args:
        first, second: integer label maps in [0, labels), of the same shape.

    Raises:
        ValueError: shapes that differ, or a label out of range.
    """
    if first.shape != second.shape:
        raise ValueError(f"second: must be {tuple(first.shape)} as first, got {tuple(second.shape)}")
    for name, labelled in (("first", first), ("second", second)):
        if labelled.numel() and not 0 <= int(labelled.min()) <= int(labelled.max()) < labels:
            raise ValueError(f"{name}: labels must be in [0, {labels})")
    cells = first.flatten().long() * labels + second.flatten().long()
    return torch.bincount(cells, minlength=labels * labels).view(labels, labels)


def chance_corrected_agreement(counts: Tensor) -> float:
    """How far two labellings agree beyond chance: Cohen's kappa.

    Plain agreement would reward settings that give every pixel the same label. Of the images and of their augmented
    views it is the score "agreement under augmentation".

    Args:
        counts: (m, m), as `label_counts` gives, summed over the images.

    Returns:
        1 for equal labellings, 0 for what chance gives, also where only one label occurs or nothing was counted; higher
        is better.

    Raises:
        ValueError: another shape.

    Source: Cohen, "A coefficient of agreement for nominal scales", 1960.

    Example:
        >>> chance_corrected_agreement(torch.tensor([[2, 0], [1, 1]]))
        0.5
    """
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"counts: must be (m, m), got {tuple(counts.shape)}")
    shares = counts.double() / counts.sum().clamp_min(1)
    chance = (shares.sum(dim=0) * shares.sum(dim=1)).sum()
    if chance >= 1 or not counts.any():
        return 0.0
    return float((shares.diagonal().sum() - chance) / (1 - chance))
