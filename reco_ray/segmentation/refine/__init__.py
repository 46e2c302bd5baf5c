"""Refiners: scores and the photograph in, scores that follow its edges out."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from reco_ray.segmentation.refine.crf import dense_crf
from reco_ray.segmentation.refine.pamr import pamr

REFINERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda scores, image: scores,
    "pamr": pamr,
    "crf": dense_crf,
}


def refine(scores: Tensor, image: Tensor, method: Literal["none", "pamr", "crf"] = "none") -> Tensor:
    """Refines the scores of one image with its published settings: see `pamr` and `dense_crf`.

    Memory and time grow with the number of concepts: with many, refine only those that won anywhere
    (`concept_scores` with `concepts=labels.unique().long()`).

    Args:
        scores: (m, H, W) float in [0, 1].
        image: (3, H, W) uint8 RGB, of the same size and on the same device.
        method: "none" gives the scores back as they are.

    Returns:
        (m, H, W); float32 in [0, 1] from "pamr" and "crf", summing to 1 over the concepts from "crf".

    Raises:
        ValueError: an unknown method or other shapes or types than these.
    """
    if method not in REFINERS:
        raise ValueError(f"method: must be one of {', '.join(REFINERS)}, got {method!r}")
    if scores.ndim != 3 or 0 in scores.shape or not scores.is_floating_point():
        raise ValueError(f"scores: must be float (m, H, W), got {scores.dtype} {tuple(scores.shape)}")
    size = (3, *scores.shape[1:])
    if image.dtype != torch.uint8 or image.shape != size:
        raise ValueError(
            f"image: must be uint8 {size} like the scores, got {image.dtype} {tuple(image.shape)}"
        )
    with torch.autocast(image.device.type, enabled=False):  # the lattice needs float32
        return REFINERS[method](scores, image)
