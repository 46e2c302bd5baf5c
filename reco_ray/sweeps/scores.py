"""Label-free scores of settings. Torch only.

Seed agreement and support margin measure the co-segmentation of exemplars; prediction entropy and agreement under
augmentation measure predictions. docs/sweeps.md reports how well each of them ranks settings compared with mIoU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def seed_agreement(seed_features: Tensor) -> float:
    """Mean cosine similarity over all pairs of different exemplars' seeds.

    Seeds that show the same thing are similar; the seed of an exemplar without the concept is similar to none.

    Args:
        seed_features: (n, c) floating point, n at least 2, of any scale.

    Returns:
        In [-1, 1], higher is better. A seed of zeros has a cosine of 0 with every other.

    Raises:
        ValueError: If the shape is another one or n is 1.

    Example:
        >>> seed_agreement(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]))
        0.3333333333333333
    """
    if seed_features.ndim != 2 or len(seed_features) < 2:
        raise ValueError(f"seed_features: must be (n, c) with n >= 2, got {tuple(seed_features.shape)}")
    unit = F.normalize(seed_features.double(), dim=1)
    n = len(unit)
    # The squared norm of the sum counts every pair twice, and every seed with itself.
    pairs = unit.sum(dim=0).square().sum() - unit.square().sum()
    return float(pairs / (n * (n - 1)))


def support_margin(support: Tensor) -> float:
    """1 - mean / maximum of each exemplar's support map, averaged over the exemplars.

    The ratio is used because context elimination scales whole maps, making all supports some thirty times smaller.

    Args:
        support: (n, h, w) floating point, as `Cosegmentation.support`.

    Returns:
        Near 1 if the support is concentrated in one of many locations, 0 if it is uniform or nowhere above zero, above
        1 only if the mean is negative. Higher is better.

    Raises:
        ValueError: If the shape is another one or a dimension is 0.

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
    """Entropy of the concepts' scores after normalising them to sum 1, relative to log(m), averaged over locations.

    Args:
        scores: (m, h, w) floating point, not negative, m at least 2: `concept_scores` of one image, before refinement.

    Returns:
        In [0, 1]: 0 if at every location a single concept scores above zero, 1 if all scores of a location are equal.
        Lower is better. Sigmoid scores are close to equal, so values differ in the later digits.

    Raises:
        ValueError: If the shape is another one, m is below 2 or a score is negative.

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
    """Counts how often each pair of labels occurs at the same pixel. Counts of several images can be added.

    Args:
        first: Integer label map.
        second: Integer label map of the same shape.
        labels: Number of labels; both maps hold labels in [0, labels).

    Returns:
        int64 (labels, labels); rows are labels of the first map.

    Raises:
        ValueError: If the shapes differ or a label is out of range.
    """
    if first.shape != second.shape:
        raise ValueError(f"second: must be {tuple(first.shape)} as first, got {tuple(second.shape)}")
    for name, labelled in (("first", first), ("second", second)):
        if labelled.numel() and not 0 <= int(labelled.min()) <= int(labelled.max()) < labels:
            raise ValueError(f"{name}: labels must be in [0, {labels})")
    cells = first.flatten().long() * labels + second.flatten().long()
    return torch.bincount(cells, minlength=labels * labels).view(labels, labels)


def chance_corrected_agreement(counts: Tensor) -> float:
    """Agreement of two labellings beyond chance: Cohen's kappa ("A coefficient of agreement for nominal scales", 1960).

    Computed for images and their augmented views, it is the score `augmentation_agreement`. Plain agreement would
    favour settings that give every pixel the same label.

    Args:
        counts: (m, m) from `label_counts`, summed over the images.

    Returns:
        1 for equal labellings, 0 for agreement by chance, a single label or no counts. Higher is better.

    Raises:
        ValueError: If the shape is another one.

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
