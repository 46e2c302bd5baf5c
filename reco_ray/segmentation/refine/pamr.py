"""Pixel-adaptive mask refinement (PAMR): averages scores over neighbouring pixels of similar colour.

Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020. No maintained package on PyPI
provides it.

In each of ten iterations every pixel becomes a weighted mean of its neighbours. The weights are constant and computed
once; an iteration is a weighted gather (`embedding_bag`), which needs no copy of the scores per neighbour.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TITLE = "PAMR, quick"
REFINES_LOGITS = True
ITERATIONS = 10
DILATIONS = (1, 2, 4, 8, 12, 24)  # of the 3 x 3 window, in pixels
_BANDWIDTH = 0.1  # relative to the local standard deviation of the colour; from the released code
_BAND_PIXELS = 1 << 14  # pixels per gather: about 10 MB per temporary


def refine(scores: Tensor, image: Tensor) -> Tensor:
    """Refines scores by the colours of their image, at full resolution.

    Args:
        scores: (m, H, W) float.
        image: (3, H, W) uint8 RGB, on the same device.

    Returns:
        (m, H, W) float32, weighted means of the input: its range and its sums over concepts are preserved.
    """
    height, width = scores.shape[1:]
    rows = max(1, _BAND_PIXELS // width)
    bands = torch.arange(height, dtype=torch.int32, device=image.device).split(rows)
    colours = image.flatten(1).T.float()
    own_colours = colours.split(rows * width)
    weights = [
        _affinity(own, colours[_neighbours(band, height, width)])
        for band, own in zip(bands, own_colours, strict=True)
    ]
    values = scores.flatten(1).T.float().contiguous()
    for _ in range(ITERATIONS):
        refined = [
            F.embedding_bag(_neighbours(band, height, width), values, mode="sum", per_sample_weights=weight)
            for band, weight in zip(bands, weights, strict=True)
        ]
        values = torch.cat(refined)
    return values.T.reshape(scores.shape)


def _neighbours(rows: Tensor, height: int, width: int) -> Tensor:
    """Indices of the neighbours of all pixels in some rows, eight per dilation, clamped to the border.

    Returns:
        (rows * width, 48) int32, indices of pixels.
    """
    around = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]
    steps = torch.tensor([(d * down, d * right) for d in DILATIONS for down, right in around]).to(rows)
    columns = torch.arange(width).to(rows)
    down = (rows[:, None] + steps[:, 0]).clamp_(0, height - 1)
    right = (columns[:, None] + steps[:, 1]).clamp_(0, width - 1)
    return (down[:, None] * width + right).flatten(0, 1)


def _affinity(own: Tensor, around: Tensor) -> Tensor:
    """Weights of neighbours from colours (p, 3) of pixels and (p, n, 3) of their neighbours: (p, n), rows sum to 1."""
    own = own[:, None]
    # The deviation is that of the whole 3 x 3 windows, each of which includes the pixel itself.
    count = around.shape[1] + len(DILATIONS)
    mean = (around.sum(1, keepdim=True) + len(DILATIONS) * own) / count
    squares = (around - mean).square().sum(1, keepdim=True) + len(DILATIONS) * (own - mean).square()
    deviation = (squares / (count - 1)).sqrt()
    likeness = -(around - own).abs() / (_BANDWIDTH * deviation + 1e-8)
    return likeness.mean(2).softmax(1)
