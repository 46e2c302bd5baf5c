"""Fully connected conditional random field (dense CRF), with pairwise potentials of position and colour.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011.
The packages on PyPI either need a C++ compiler and run on the CPU only (pydensecrf2, SimpleCRF) or ignore colour
(crfseg).

Symmetric normalisation and a pixel's message to itself follow the authors' C++ code and pydensecrf. The Gaussian kernel
is computed exactly. The bilateral kernel uses the same permutohedral lattice (Adams, Baek, Davis, "Fast
High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010), but averages blurs in both orders of
the directions: a single order gives an asymmetric filter where the lattice is sparse, which is everywhere in
photographs at a colour deviation of 3.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TITLE = "CRF, slow"
ITERATIONS = 10
GAUSSIAN_WEIGHT, GAUSSIAN_DEVIATION = 3.0, 1.0  # Gaussian kernel; deviation in pixels
BILATERAL_WEIGHT, BILATERAL_DEVIATION, COLOUR_DEVIATION = 4.0, 67.0, 3.0  # deviations: pixels, levels of 255
MIN_PROBABILITY = 1e-5  # of the unary potential, so that a score of 0 does not exclude a concept

Filter = Callable[[Tensor], Tensor]  # (n, m) -> (n, m), column by column


def refine(scores: Tensor, image: Tensor) -> Tensor:
    """Refines scores by ten mean-field steps of a dense CRF with Potts compatibility.

    The unary of a concept is -log of its share of the sum of the pixel's scores, at least MIN_PROBABILITY.

    Args:
        scores: (m, H, W) float, at least 0.
        image: (3, H, W) uint8 RGB, on the same device.

    Returns:
        (m, H, W) float32 probabilities, summing to 1 over the concepts.
    """
    height, width = scores.shape[1:]
    shares = scores.float() / scores.float().sum(0, keepdim=True).clamp_min(1e-20)
    unary = -shares.clamp_min(MIN_PROBABILITY).log().flatten(1).T.contiguous()
    ones = torch.ones_like(unary[:, :1])
    place = _normalised(_gaussian_filter(height, width, image.device), GAUSSIAN_WEIGHT, ones)
    lattice = PermutohedralLattice(_bilateral_features(image))
    bilateral = _normalised(lattice.filter, BILATERAL_WEIGHT, ones)
    marginals = torch.softmax(-unary, dim=1)
    for _ in range(ITERATIONS):
        marginals = torch.softmax(place(marginals) + bilateral(marginals) - unary, dim=1)
    return marginals.T.reshape(scores.shape)


def _normalised(kernel: Filter, weight: float, ones: Tensor) -> Filter:
    """weight * D^-1/2 K D^-1/2 with D the row sums of K; independent of the scale of K."""
    scale = (weight / kernel(ones)).sqrt()
    return lambda values: scale * kernel(scale * values)


def _gaussian_filter(height: int, width: int, device: torch.device) -> Filter:
    """Separable Gaussian filter over positions, truncated at 5 deviations (4e-6)."""
    reach = math.ceil(5 * GAUSSIAN_DEVIATION)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=device)
    profile = torch.exp(-0.5 * (offsets / GAUSSIAN_DEVIATION) ** 2)

    def apply(values: Tensor) -> Tensor:
        # As a channels-last image with one group per channel, which is fast for convolutions.
        maps = values.view(1, height, width, -1).permute(0, 3, 1, 2)
        taps = profile.expand(maps.shape[1], 1, 1, -1)
        maps = F.conv2d(maps, taps, padding=(0, reach), groups=maps.shape[1])
        maps = F.conv2d(maps, taps.mT, padding=(reach, 0), groups=maps.shape[1])
        return maps.permute(0, 2, 3, 1).reshape(values.shape)

    return apply


def _bilateral_features(image: Tensor) -> Tensor:
    """Position and colour of each pixel in standard deviations: (3, H, W) uint8 -> (H * W, 5)."""
    rows = torch.arange(image.shape[1], device=image.device).view(-1, 1).expand(image.shape[1:])
    columns = torch.arange(image.shape[2], device=image.device).expand(image.shape[1:])
    place = torch.stack([columns, rows]).float() / BILATERAL_DEVIATION
    return torch.cat([place, image.float() / COLOUR_DEVIATION]).flatten(1).T.contiguous()


class PermutohedralLattice:
    """An approximate Gaussian filter over n points in d dimensions, in time and memory linear in n.

    Space is tiled with simplices. Each point distributes its value to the d + 1 corners of its simplex (splat), the
    corners are blurred along the d + 1 directions of the lattice, and each point interpolates the blurred values
    (slice). Only corners of occupied simplices are stored.
    """

    def __init__(self, points: Tensor) -> None:
        """Args: points: (n, d) float32, in standard deviations of the filter."""
        codes, directions, weights = _simplices(points)
        corners, inverse = torch.unique(codes, return_inverse=True)
        self._splat = _transposed(inverse, weights, len(corners))
        self._blurs = [_blur(corners, direction) for direction in directions]
        self._slice = _bags(inverse, weights)

    def filter(self, values: Tensor) -> Tensor:
        """Gaussian sums, up to a common factor: (n, m) float32 -> (n, m)."""
        splatted = self._splat.sums(values)
        blurred = torch.zeros_like(splatted)
        for order in (self._blurs, self._blurs[::-1]):
            once = splatted
            for blur in order:
                once = blur.sums(once)
            blurred += 0.5 * once
        return self._slice.sums(blurred)


class _Bags(NamedTuple):
    """A sparse matrix: row i holds `weights` in columns `columns`, both from starts[i] to starts[i + 1]."""

    columns: Tensor  # int32: half the memory of int64
    starts: Tensor  # int32
    weights: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """Product with values: (columns, m) -> (rows, m). Several times faster than torch.sparse."""
        columns, starts, weights = self
        return F.embedding_bag(columns, values, starts, mode="sum", per_sample_weights=weights)


def _bags(columns: Tensor, weights: Tensor) -> _Bags:
    """Sparse matrix from (rows, k) columns and weights."""
    starts = torch.arange(0, columns.numel(), columns.shape[1], dtype=torch.int32, device=columns.device)
    return _Bags(columns.flatten().int(), starts, weights.flatten())


def _transposed(columns: Tensor, weights: Tensor, count: int) -> _Bags:
    """The transpose of `_bags`, with `count` rows."""
    order = columns.flatten().argsort(dim=0, stable=True)
    sizes = torch.bincount(columns.flatten(), minlength=count)
    starts = (sizes.cumsum(0) - sizes).int()
    return _Bags((order // columns.shape[1]).int(), starts, weights.flatten()[order])


def _blur(corners: Tensor, step: Tensor) -> _Bags:
    """The blur (1/4, 1/2, 1/4) in one direction, for sorted codes of corners."""
    itself = torch.arange(len(corners), device=corners.device)
    columns, weights = [itself], [torch.full_like(itself, 0.5, dtype=torch.float32)]
    for code in (corners + step, corners - step):
        found = torch.searchsorted(corners, code).clamp_max(len(corners) - 1)
        exists = corners[found] == code
        columns.append(torch.where(exists, found, itself))
        weights.append(0.25 * exists)
    return _bags(torch.stack(columns, 1), torch.stack(weights, 1))


def _simplices(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the simplex around each point (Adams et al., section 3).

    Lattice points are integer vectors of d + 1 coordinates that sum to 0. Each is hashed to a code, its dot product
    with a fixed random vector modulo 2^64: the probability of a collision among a million corners is about 1e-7, and a
    step in a direction adds a constant to the code.

    Returns:
        codes of the corners (n, d + 1) int64, codes of the steps in the d + 1 directions (d + 1,) int64,
        barycentric coordinates (n, d + 1) float32.
    """
    n, d = points.shape
    side = d + 1
    multipliers = torch.randint(-(2**62), 2**62, (side,), generator=torch.Generator().manual_seed(0))
    multipliers = multipliers.to(points.device)

    # Project onto the hyperplane of the lattice, scaled so that splat, blur and slice together have a deviation of 1.
    column = torch.arange(1, side, dtype=points.dtype, device=points.device)
    basis = torch.ones(side, d, dtype=points.dtype, device=points.device).triu()
    basis.diagonal(-1).copy_(-column)
    basis *= math.sqrt(2 / 3) * side / (column * (column + 1)).sqrt()
    elevated = points @ basis.T

    # The nearest point whose coordinates are multiples of d + 1. If they do not sum to 0, the coordinates with the
    # largest rounding errors move to the next multiple; ranks (0: farthest above its rounded value) shift cyclically.
    rounded = (elevated / side).round().long()
    rank = (elevated - side * rounded).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    rank = rank + rounded.sum(1, keepdim=True)
    wrapped = (rank < 0).long() - (rank > d).long()
    rounded, rank = rounded + wrapped, rank + side * wrapped

    # Differences between consecutive ranks are the barycentric coordinates of corners 1 to d.
    above = torch.empty_like(elevated).scatter_(1, rank, elevated - side * rounded)
    weights = torch.empty_like(elevated)
    weights[:, 1:] = ((above[:, :-1] - above[:, 1:]) / side).flip(1)
    weights[:, 0] = 1 - weights[:, 1:].sum(1)

    # Corner k adds k to every coordinate and subtracts d + 1 from the k coordinates of highest rank.
    taken = torch.zeros_like(rank).scatter_(1, rank, multipliers.expand(n, side)).flip(1).cumsum(1)
    corner = torch.arange(side, device=points.device)
    codes = side * (rounded * multipliers).sum(1, keepdim=True) + corner * multipliers.sum()
    codes[:, 1:] -= side * taken[:, :-1]
    return codes, multipliers.sum() - side * multipliers, weights
