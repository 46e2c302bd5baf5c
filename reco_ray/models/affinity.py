"""Affinity pooling: language features averaged over visually similar locations. Pure torch, no training.

CLIP's dense features recognise objects but blur at their boundaries. The features of a self-supervised encoder such as
DINO separate objects, but are not comparable with text. Averaging the former by the similarity of the latter sharpens
the boundaries.

- "proxyclip": ProxyCLIP (Lan et al., ECCV 2024, section 3.3). The paper replaces the attention of CLIP's last block by
  the affinity; here the affinity pools the output of that block, which works with every language-image model.
- "dinoiser": the pooling of CLIP-DINOiser (Wysoczanska et al., ECCV 2024, section 3.2), with the encoder's own
  correlations instead of the layer that is trained to predict them.
"""

from typing import Literal

import torch
import torch.nn.functional as F

PROXYCLIP_SHIFT = 1.2  # beta of the paper
PROXYCLIP_SCALE = 3.0  # its gamma
DINOISER_THRESHOLD = 0.2  # gamma of that paper
IDENTICAL_COSINE = 1 - 1e-4  # from here on two locations differ by rounding only
MAX_COSINES = 1 << 24  # in memory at once: 64 MB


def pool_by_affinity(
    language: torch.Tensor, visual: torch.Tensor, method: Literal["proxyclip", "dinoiser"]
) -> torch.Tensor:
    """Replaces every language feature by a weighted mean over visually similar locations.

    With L the language features, resized bilinearly to (h, w), c(p, q) the cosine of the visual features at p and
    q, and c(p, p) = 1::

        pooled(p) = sum_q w(p, q) L(q) / sum_q w(p, q)

        proxyclip:  w(p, q) = exp(gamma (c(p, q) - beta m)) where c(p, q) >= beta m, else 0
                    m = mean of c over all pairs of the image, beta = 1.2, gamma = 3 (a masked softmax)
        dinoiser:   w(p, q) = c(p, q) where c(p, q) >= 0.2, else 0

    In very uniform images beta m exceeds 1 and ProxyCLIP's formula gives every location a weight of 0. Here the
    threshold is limited to IDENTICAL_COSINE, so that identical locations, including p itself, keep their weight.

    Cosines are computed for some rows at a time, so memory grows with h * w instead of its square.

    Args:
        language: (b, d, h', w') language features.
        visual: (b, c, h, w) visual features; need not be normalised.
        method: "proxyclip" or "dinoiser".

    Returns:
        (b, d, h, w) float32, not normalised.

    Raises:
        ValueError: an argument has the wrong shape, or the method is unknown.
    """
    if language.ndim != 4 or visual.ndim != 4 or len(language) != len(visual):
        raise ValueError(
            "language and visual: must be (b, d, h', w') and (b, c, h, w), "
            f"got {tuple(language.shape)} and {tuple(visual.shape)}"
        )
    if method not in ("proxyclip", "dinoiser"):
        raise ValueError(f"method: must be proxyclip or dinoiser, got {method!r}")
    size = visual.shape[2:]
    values = F.interpolate(language.float(), size, mode="bilinear", align_corners=False).flatten(2).mT
    units = F.normalize(visual.float().flatten(2), dim=1)
    # The mean cosine of all pairs is the squared length of the mean unit vector.
    mean = units.mean(dim=2).square().sum(dim=1)[:, None, None]
    threshold = (
        (PROXYCLIP_SHIFT * mean).clamp(max=IDENTICAL_COSINE) if method == "proxyclip" else DINOISER_THRESHOLD
    )
    pooled = torch.empty_like(values)
    locations = torch.arange(units.shape[2], device=units.device)
    for rows in locations.split(max(1, MAX_COSINES // (len(units) * len(locations)))):
        cosines = units[:, :, rows].mT @ units
        cosines[:, torch.arange(len(rows), device=rows.device), rows] = 1  # would be 0 for a zero vector
        weights = torch.exp(PROXYCLIP_SCALE * (cosines - threshold)) if method == "proxyclip" else cosines
        weights = weights * (cosines >= threshold)
        pooled[:, rows] = weights @ values / weights.sum(dim=2, keepdim=True)
    return pooled.mT.unflatten(2, size)
