"""Refinement of scores to follow the edges of the image, one module per method."""

import torch
from torch import Tensor

from reco_ray.registry import REFINEMENTS


def refine(scores: Tensor, image: Tensor, method: str = "none", features: Tensor | None = None) -> Tensor:
    """Refines the scores of one image with the published settings of a method.

    Memory and time grow with the number of concepts; with many, refine only those in the label map
    (`concept_scores` with `concepts=labels.unique().long()`).

    Args:
        scores: (m, H, W) float: shares in [0, 1], or logits if the method `refines_logits`.
        image: (3, H, W) uint8 RGB, of the same size and on the same device.
        method: a name in `REFINEMENTS`; "none" returns the scores unchanged.
        features: dense features of the image, (c, h, w), for methods that compare regions by them.

    Returns:
        (m, H, W); float32 within the range of the scores, summing to 1 over the concepts from "crf".

    Raises:
        RecoError: the method is unknown, or needs a package that is not installed.
        ValueError: an argument has the wrong shape or dtype.
    """
    refinement = REFINEMENTS.get(method)
    if scores.ndim != 3 or 0 in scores.shape or not scores.is_floating_point():
        raise ValueError(f"scores: must be float (m, H, W), got {scores.dtype} {tuple(scores.shape)}")
    size = (3, *scores.shape[1:])
    if image.dtype != torch.uint8 or image.shape != size:
        raise ValueError(
            f"image: must be uint8 {size} like the scores, got {image.dtype} {tuple(image.shape)}"
        )
    with torch.autocast(image.device.type, enabled=False):  # the lattice of the CRF needs float32
        if getattr(refinement, "USES_FEATURES", False):
            return refinement.refine(scores, image, features)
        return refinement.refine(scores, image)


def refines_logits(method: str) -> bool:
    """Whether a method takes any scores, as weighted means do, not only shares in [0, 1]."""
    return getattr(REFINEMENTS.get(method), "REFINES_LOGITS", False)


def require_refinement(method: str) -> None:
    """Checks before any work whether a method can be used.

    Args:
        method: a name in `REFINEMENTS`.

    Raises:
        RecoError: the method is unknown, or needs a package that is not installed.
    """
    refinement = REFINEMENTS.get(method)
    if hasattr(refinement, "require"):
        refinement.require()
