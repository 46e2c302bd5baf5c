"""Mean scores of superpixels: regions of similar colour, whose pixels all get the same scores.

Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004, as implemented by scikit-image.
The regions are found in a small copy of the image, on the CPU.
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from reco_ray.errors import MissingPackageError

TITLE = "Superpixels, quick"
SHORT_SIDE = 224  # of the copy, in pixels; smaller images are not resized
# For a copy with that short side. In smaller images MIN_SIZE shrinks with the area, SCALE and SIGMA with the root of
# the side: then photographs of 48 to 224 pixels have the same number of regions, about a hundred (measured).
SCALE = 150.0  # k of the paper: larger values give larger regions
SIGMA = 0.8  # standard deviation of the Gaussian that smoothes the copy, in pixels
MIN_SIZE = 60  # smallest region, in pixels


def refine(scores: Tensor, image: Tensor) -> Tensor:
    """Replaces the scores of every pixel by their mean over its superpixel.

    Args:
        scores: (m, H, W) float.
        image: (3, H, W) uint8 RGB, on the same device.

    Returns:
        (m, H, W) float32, means of the input: its range and its sums over concepts are preserved.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    regions = superpixels(image).flatten()
    values = scores.flatten(1).T.double()  # float32 is not accurate enough for sums over large regions
    areas = torch.bincount(regions)
    sums = values.new_zeros(len(areas), len(scores)).index_add_(0, regions, values)
    means = (sums / areas[:, None]).float()
    return means.T.contiguous().index_select(1, regions).view(scores.shape)


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
            'refinement superpixels needs the package scikit-image: pip install "reco-ray[demo]"'
        )
