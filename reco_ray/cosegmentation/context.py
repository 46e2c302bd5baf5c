"""Context elimination: lowers the weight of locations like common surroundings (ReCo, section 3). Torch only."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from reco_ray.cosegmentation.cosegment import require_features, require_finite


@torch.no_grad()
def context_weights(features: Tensor, context_references: Tensor) -> Tensor:
    """Dissimilarity of each location to each context reference: `1 - sigmoid(cos(feature, reference))`.

    Their product over the references, times the language attention, is the weight that `cosegment` takes.

    Args:
        features: (n, c, h, w) floating point; need not be normalised. Half precision is computed in float32.
        context_references: (m, c) floating point; need not be normalised. m may be 0.

    Returns:
        (n, m, h, w) between 0.27 and 0.73, 0.5 where a vector is zero; float32, or float64 if features are.

    Raises:
        ValueError: an argument has the wrong shape or dtype, or holds NaN or infinity.

    Source: Shin et al., "ReCo: Retrieve and Co-segment for Zero-shot Transfer", NeurIPS 2022, section 3.

    Example:
        >>> feature = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
        >>> context_weights(feature, torch.eye(2)).flatten()
        tensor([0.2689, 0.5000])
    """
    require_features(features)
    channels = features.shape[1]
    if context_references.ndim != 2 or context_references.shape[1] != channels:
        raise ValueError(
            f"context_references must be (m, c) with c = {channels}, as the features, "
            f"got {tuple(context_references.shape)}"
        )
    require_finite("context_references", context_references)

    dtype = torch.promote_types(features.dtype, torch.float32)
    unit_features = normalize(features.to(dtype), dim=1)
    unit_references = normalize(context_references.to(dtype), dim=1)
    # Autocast would round the cosines to half precision.
    with torch.autocast(features.device.type, enabled=False):
        cosines = torch.einsum("nchw,mc->nmhw", unit_features, unit_references)
    return 1 - torch.sigmoid(cosines)
