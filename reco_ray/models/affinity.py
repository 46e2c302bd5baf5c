"""Language features pooled over what looks alike: CLIP's words with the edges of a visual encoder. Pure torch.

CLIP's features know what stands at a place, but blur where it ends; a self-supervised encoder such as DINO knows
what belongs together, but no words. So every location takes the mean of the language features of all locations
that the encoder finds like it. Nothing is trained.

- "proxyclip": ProxyCLIP (Lan et al., ECCV 2024, section 3.3). There the affinity takes the place of the attention
  in CLIP's last block; here it pools that block's output, so that it serves every language-image model.
- "dinoiser": the pooling of CLIP-DINOiser (Wysoczanska et al., ECCV 2024, section 3.2) by the encoder's own
  correlations, those that its trained layer imitates.
"""

from typing import Literal

import torch
import torch.nn.functional as F

PROXYCLIP_SHIFT = 1.2  # beta of the paper
PROXYCLIP_SCALE = 3.0  # its gamma
DINOISER_THRESHOLD = 0.2  # gamma of that paper
# Above this cosine two locations are the same but for rounding.
SAME = 1 - 1e-4
MAX_COSINES = 1 << 24  # held at once: 64 MB


def pool_by_affinity(
    language: torch.Tensor, visual: torch.Tensor, method: Literal["proxyclip", "dinoiser"]
) -> torch.Tensor:
    """Replaces every language feature by the weighted mean over the locations that look like it.

    With L the language features, resized bilinearly to (h, w), c(p, q) the cosine of the visual features at p and
    q, and c(p, p) = 1::

        pooled(p) = sum_q w(p, q) L(q) / sum_q w(p, q)

        proxyclip:  w(p, q) = exp(gamma (c(p, q) - beta m)) where c(p, q) >= beta m, else 0
                    m = mean of c over all pairs of the image, beta = 1.2, gamma = 3 (a masked softmax)
        dinoiser:   w(p, q) = c(p, q) where c(p, q) >= 0.2, else 0

    Where an image is so uniform that beta m exceeds 1, ProxyCLIP's formula leaves a location nothing, not even
    itself; here it keeps those equal to it.

    Args:
        language: (b, d, h', w'), of any size.
        visual: (b, c, h, w), of any scale.

    Returns:
        (b, d, h, w) float32; the mean of unit vectors is shorter than one. Memory grows with h * w, not with its
        square: cosines are formed some rows at a time.

    Raises:
        ValueError: shapes other than these, or an unknown method.
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
    threshold = (PROXYCLIP_SHIFT * mean).clamp(max=SAME) if method == "proxyclip" else DINOISER_THRESHOLD
    pooled = torch.empty_like(values)
    locations = torch.arange(units.shape[2], device=units.device)
    for rows in locations.split(max(1, MAX_COSINES // (len(units) * len(locations)))):
        cosines = units[:, :, rows].mT @ units
        cosines[:, torch.arange(len(rows), device=rows.device), rows] = 1  # 0 for a zero vector otherwise
        weights = torch.exp(PROXYCLIP_SCALE * (cosines - threshold)) if method == "proxyclip" else cosines
        weights = weights * (cosines >= threshold)
        pooled[:, rows] = weights @ values / weights.sum(dim=2, keepdim=True)
    return pooled.mT.unflatten(2, size)
