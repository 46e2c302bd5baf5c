"""Scores of superpixels: regions of similar colour, whose pixels all get the same scores.

Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004, as implemented by scikit-image.
The regions are found in a small copy of the image, on the CPU.
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from reco_ray.errors import MissingPackageError

TITLE = "Superpixels, quick"
REFINES_LOGITS = USES_FEATURES = True
SHORT_SIDE = 224  # of the copy, in pixels; smaller images are not resized
# For a copy with that short side. In smaller images MIN_SIZE shrinks with the area, SCALE and SIGMA with the root of
# the side: then photographs of 48 to 224 pixels have the same number of regions, about a hundred (measured).
SCALE = 150.0  # k of the paper: larger values give larger regions
SIGMA = 0.8  # standard deviation of the Gaussian that smoothes the copy, in pixels
MIN_SIZE = 60  # smallest region, in pixels

# Scores flow between regions that look alike: a region keeps 1 - FLOW of its own.
FLOW = 0.6
COLOUR_DEVIATION = 10.0  # distance in CIELAB at which the likeness of two regions has fallen to 1/e
FEATURE_DEVIATION = 0.15  # the same for 1 - the cosine of their mean features
# A region keeps more of its own if the others that resemble it, weighted by likeness, are less than this share of the
# image; else a single object on a plain ground would be averaged with the ground, as nothing else is there.
MIN_ALIKE = 0.001


def refine(scores: Tensor, image: Tensor, features: Tensor | None = None) -> Tensor:
    """Replaces the scores of every pixel by those of its superpixel.

    The mean scores of the regions are propagated between regions of similar colour and features by a random walk with
    restart, the closed form of label spreading (Zhou et al., "Learning with Local and Global Consistency", NIPS 2003).

    Args:
        scores: (m, H, W) float.
        image: (3, H, W) uint8 RGB, on the same device.
        features: dense features of the image, (c, h, w); None: regions are compared by colour only.

    Returns:
        (m, H, W) float32, weighted means of the input: its range and its sums over concepts are preserved.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    regions = superpixels(image)
    flat = regions.flatten()
    areas = torch.bincount(flat)
    means = _region_means(scores.flatten(1), flat, areas)
    if len(areas) > 1:
        likeness = _likeness(image, features, regions, areas)
        walk = torch.eye(len(areas), dtype=torch.double, device=scores.device) - FLOW * likeness
        means = torch.linalg.solve(walk, (1 - FLOW) * means)
    return means.float().T.contiguous().index_select(1, flat).view(scores.shape)


def _region_means(values: Tensor, regions: Tensor, areas: Tensor) -> Tensor:
    """Means over n regions: (m, H * W) -> (n, m) float64; float32 is not accurate enough for large regions."""
    sums = values.new_zeros(len(areas), len(values), dtype=torch.double)
    return sums.index_add_(0, regions, values.T.double()) / areas[:, None]


def _likeness(image: Tensor, features: Tensor | None, regions: Tensor, areas: Tensor) -> Tensor:
    """Shares of every region's scores that come from each region, (n, n) float64, rows sum to 1.

    Proportional to likeness times area; what is missing to `MIN_ALIKE` comes from the region itself.
    """
    from skimage.color import rgb2lab

    colours = torch.from_numpy(rgb2lab(image.permute(1, 2, 0).cpu().numpy())).to(image.device)
    means = _region_means(colours.flatten(0, 1).T, regions.flatten(), areas)
    exponent = -(torch.cdist(means, means) / COLOUR_DEVIATION).square()
    if features is not None:
        exponent += (_region_cosines(features, regions, areas) - 1) / FEATURE_DEVIATION
    weights = exponent.exp() * areas
    weights.fill_diagonal_(0)
    shares = weights / weights.sum(1, keepdim=True).clamp_min(MIN_ALIKE * areas.sum())
    return shares + torch.diag(1 - shares.sum(1))


def _region_cosines(features: Tensor, regions: Tensor, areas: Tensor) -> Tensor:
    """Cosines of the mean features of n regions, (n, n) float64, from features (c, h, w)."""
    rows, columns = (
        torch.arange(full, device=regions.device) * small // full
        for full, small in zip(regions.shape, features.shape[1:], strict=True)
    )
    cells = features.shape[1] * features.shape[2]
    pairs = (regions * cells + rows[:, None] * features.shape[2] + columns).flatten()
    shares = torch.bincount(pairs, minlength=len(areas) * cells).view(len(areas), cells).float()
    units = F.normalize(features.flatten(1).float(), dim=0)
    means = F.normalize(shares @ units.T, dim=1)
    return (means @ means.T).double()


def superpixels(image: Tensor) -> Tensor:
    """Divides an image into regions.

    Args:
        image: (3, H, W) uint8 RGB.

    Returns:
        Number of the region of each pixel, int64 (H, W), on the image's device. Each of 0 to their maximum occurs.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    require()
    # Imported here: it takes most of a second, and is not needed for other refinements.
    from skimage.segmentation import felzenszwalb

    sides = image.shape[1:]
    shrink = min(1.0, SHORT_SIDE / min(sides))
    height, width = (max(1, round(side * shrink)) for side in sides)
    copy = F.interpolate(image[None].float(), (height, width), mode="area")[0].round().byte()
    size = min(height, width) / SHORT_SIDE
    regions = felzenszwalb(
        copy.permute(1, 2, 0).cpu().numpy(),
        scale=SCALE * size**0.5,
        sigma=SIGMA * size**0.5,
        min_size=max(1, round(MIN_SIZE * size**2)),
    )
    rows, columns = (
        torch.arange(full) * small // full for full, small in zip(sides, regions.shape, strict=True)
    )
    return torch.from_numpy(regions)[rows[:, None], columns].to(image.device)


def require() -> None:
    """Raises MissingPackageError if scikit-image is not installed."""
    if find_spec("skimage") is None:
        raise MissingPackageError(
            "refinement superpixels needs the package scikit-image: pip install scikit-image"
        )
