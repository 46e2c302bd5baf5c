"""No refinement."""

from torch import Tensor

TITLE = "No"
REFINES_LOGITS = True


def refine(scores: Tensor, image: Tensor, features: Tensor | None = None) -> Tensor:
    """Returns the scores unchanged."""
    return scores
