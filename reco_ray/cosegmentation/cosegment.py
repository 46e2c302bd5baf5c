"""Co-segmentation: the reference embedding of a concept from its exemplars (ReCo, section 3). Torch only."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

Reduction = Literal["mean", "medoid", "rank_weighted"]
Pairing = Literal["exact", "as_released"]

# Products are computed in strips: a few images, with about this many locations in total, enough for matrix products to
# run at full speed, times as many other images as fit this memory. Long strips need fewer operations, after each of
# which the threads wait for each other; on a busy machine that costs more than cache misses.
STRIP_LOCATIONS = 784
STRIP_PRODUCTS = 4_000_000  # 16 MB in float32


@dataclass(frozen=True)
class Cosegmentation:
    """Result of co-segmenting `n` exemplars, in float32, or float64 if the features are.

    Attributes:
        reference: (c,) unit vector, the concept's embedding; zero only if the seeds cancel out or are zero.
        seed_features: (n, c) feature of each exemplar at its seed, not normalised.
        seed_locations: (n, 2) int64, row and column of each seed.
        support: (n, h, w) mean over the images of the best weighted cosine similarity found in each.
    """

    reference: Tensor
    seed_features: Tensor
    seed_locations: Tensor
    support: Tensor


@torch.no_grad()
def cosegment(
    features: Tensor,
    weights: Tensor | None = None,
    *,
    allowed: Tensor | None = None,
    reduction: Reduction = "mean",
    pairing: Pairing = "exact",
) -> Cosegmentation:
    """Finds in each exemplar the location that recurs in all of them, and averages the features there.

    The support of location x of image i is the mean over the images j, including i, of the maximum over the locations y
    of j of `weights[j, y] * cos(features[i, x], features[j, y])`. The seed of an image is its location of highest
    support; supports that differ by rounding only are ties, which the first location in row-major order wins. The
    cosine of a zero vector is 0.

    Memory: the maxima of the similarities in each image, n^2 h w numbers, and 16 MB (float32) of the (n h w)^2
    similarities, or those of two images if that is more.

    Args:
        features: (n, c, h, w) floating point, dense features of the exemplars in order of retrieval; need not be
            normalised. Half precision is computed in float32.
        weights: (n, h, w) floating point, not negative: how likely each location shows the concept. Default: 1.
        allowed: bool (n, h, w), at least one in each image: where seeds may lie. Other locations have weight and
            support 0. Default: everywhere.
        reduction: of the seeds to the reference, before normalisation. "mean"; "medoid", the seed most similar to the
            others, the first if tied; "rank_weighted", the mean weighted with 1 - i/n for the i-th retrieved image, i
            from 0.
        pairing: "exact" takes each maximum over one image j; "as_released" over the images j to 2j, counted from 0 and
            as far as they exist, which reproduces the authors' implementation.

    Raises:
        ValueError: an argument has the wrong shape or dtype, or contains NaN, infinity or a negative weight.

    Source: Shin et al., "ReCo: Retrieve and Co-segment for Zero-shot Transfer", NeurIPS 2022, section 3.

    Example:
        >>> features = torch.zeros(2, 3, 1, 2)
        >>> features[0, :, 0, 0] = torch.tensor([0.0, 2.0, 0.0])
        >>> features[1, :, 0, 1] = torch.tensor([0.0, 4.0, 0.0])
        >>> result = cosegment(features)
        >>> result.seed_locations.tolist(), result.reference.tolist()
        ([[0, 0], [0, 1]], [0.0, 1.0, 0.0])
    """
    require_features(features)
    n, _, height, width = features.shape
    if weights is not None:
        _require_weights(weights, (n, height, width))
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")
    if pairing not in get_args(Pairing):
        raise ValueError(f"pairing must be one of {get_args(Pairing)}, got {pairing!r}")

    if weights is None:
        weights = features.new_ones(n, height, width)
    if allowed is not None:
        _require_allowed(allowed, (n, height, width))
        weights = weights * allowed
    dtype = torch.promote_types(features.dtype, torch.float32)
    support = _support(features.flatten(2).mT.to(dtype), weights.flatten(1).to(dtype), pairing)

    if allowed is None:
        seeds = _first_maximum(support)
    else:
        outside = ~allowed.flatten(1)
        seeds = _first_maximum(support.masked_fill(outside, -torch.inf))
        support = support.masked_fill(outside, 0)
    seed_features = features.flatten(2)[torch.arange(n, device=seeds.device), :, seeds].to(dtype)
    return Cosegmentation(
        reference=_reduce(seed_features, reduction),
        seed_features=seed_features,
        seed_locations=torch.stack([seeds // width, seeds % width], dim=1),
        support=support.view(n, height, width),
    )


def _support(rows: Tensor, weights: Tensor, pairing: Pairing) -> Tensor:
    """Support of l locations per image: (n, l, c) features and (n, l) weights -> (n, l)."""
    # Each feature is scaled to the length of its weight, so that the product of two is their cosine times both weights.
    # The maximum over one of them, divided by the weight of the other, is the maximum needed in either direction, and
    # the products need no further multiplication by weights. Weights are relative to the largest, which avoids
    # underflow; those below its rounding error, including zeros, are raised to it because they are divisors.
    largest = weights.max()
    limits = torch.finfo(weights.dtype)
    lengths = (weights / largest.clamp_min(limits.tiny)).clamp_min(limits.eps)
    scaled = torch.empty_like(rows, memory_format=torch.contiguous_format).copy_(rows)
    scaled *= (lengths / scaled.norm(dim=2).clamp_min(1e-12))[:, :, None]

    maxima = _maximal_products(scaled) / lengths
    if pairing == "as_released":
        maxima = torch.stack([maxima[j : 2 * j + 1].amax(0) for j in range(len(maxima))])
    return maxima.mean(0) * largest


def _maximal_products(rows: Tensor) -> Tensor:
    """(n, l, c) -> (n, n, l): [j, i, x] is the maximum over y of the product of rows[i, x] and rows[j, y].

    Products are symmetric, so each strip is reduced in both directions.
    """
    n, locations, _ = rows.shape
    maxima = rows.new_empty(n, n, locations)
    height = min(n, max(1, STRIP_LOCATIONS // locations))
    width = min(n, max(1, STRIP_PRODUCTS // (height * locations**2)))
    # Autocast would compute the products in half precision, in which distinct locations tie.
    with torch.autocast(rows.device.type, enabled=False):
        for start in range(0, n, height):
            a = slice(start, start + height)
            for b in (slice(i, i + width) for i in range(start, n, width)):
                strip = _products(rows[b].flatten(0, 1), rows[a].flatten(0, 1))
                strip = strip.view(-1, locations, len(rows[a]), locations)
                maxima[b, a] = strip.amax(1)
                maxima[a, b] = strip.amax(3).permute(2, 0, 1)
    return maxima


def _products(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type == "cpu" and a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # The operator that torch.compile uses for linear layers: a fifth faster than torch.mm on AMD processors, and
        # this product takes nearly all the time of co-segmentation.
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return a @ b.T


def _first_maximum(values: Tensor) -> Tensor:
    """Index of the first value, along the last dimension, that equals the maximum up to rounding.

    Cosines of equal features differ in the last bits, depending on their position in a matrix product; without a
    tolerance the seed would depend on the number of images and the hardware.
    """
    maximum = values.amax(-1, keepdim=True)
    tolerance = 16 * torch.finfo(values.dtype).eps * maximum.abs()
    return (values >= maximum - tolerance).int().argmax(-1)


def _reduce(seed_features: Tensor, reduction: Reduction) -> Tensor:
    """(n, c) seeds in order of retrieval -> (c,) unit reference."""
    n = len(seed_features)
    if reduction == "medoid":
        unit = normalize(seed_features, dim=1)
        return unit[_first_maximum(unit @ unit.sum(0))]
    if reduction == "rank_weighted":
        rank = torch.arange(n, dtype=seed_features.dtype, device=seed_features.device)
        seed_features = seed_features * (1 - rank / n)[:, None]
    return normalize(seed_features.mean(0), dim=0)


def require_features(features: Tensor) -> None:
    """Raises ValueError unless features are (n, c, h, w), floating point, not empty and finite."""
    if features.ndim != 4 or features.numel() == 0:
        raise ValueError(f"features must be a non-empty (n, c, h, w) tensor, got {tuple(features.shape)}")
    require_finite("features", features)


def _require_weights(weights: Tensor, shape: tuple[int, int, int]) -> None:
    if weights.shape != shape:
        raise ValueError(f"weights must be (n, h, w) = {shape}, as the features, got {tuple(weights.shape)}")
    require_finite("weights", weights)
    if weights.min() < 0:
        raise ValueError(f"weights must not be negative, the lowest is {weights.min().item():g}")


def _require_allowed(allowed: Tensor, shape: tuple[int, int, int]) -> None:
    if allowed.shape != shape or allowed.dtype != torch.bool:
        raise ValueError(
            f"allowed must be bool (n, h, w) = {shape}, as the features, got {allowed.dtype} {tuple(allowed.shape)}"
        )
    if not allowed.flatten(1).any(1).all():
        raise ValueError("allowed must have a location in every image")


def require_finite(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless the tensor is floating point and finite."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    # The extremes propagate NaN, and are computed several times faster than a mask of finite values.
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise ValueError(f"{name} must be finite, found NaN or infinity")
