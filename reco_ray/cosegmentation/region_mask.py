"""Regions of exemplars -> locations of their feature maps. Torch only."""

import torch

from reco_ray.corpus.regions import Region


def allowed_locations(
    regions: list[Region | None], size: tuple[int, int], device: torch.device
) -> torch.Tensor | None:
    """The locations of feature maps at which seeds may lie.

    Args:
        regions: of n exemplars; None where the whole image is allowed.
        size: (h, w) of the maps.
        device: of the result.

    Returns:
        bool (n, h, w): locations whose centre is in a box, or, if a box has none, the location in which its own
        centre is. None if every location of every exemplar is allowed.
    """
    if not any(regions):
        return None
    height, width = size
    rows = (torch.arange(height, device=device) + 0.5) / height
    columns = (torch.arange(width, device=device) + 0.5) / width
    allowed = torch.ones(len(regions), height, width, dtype=torch.bool, device=device)
    for number, region in enumerate(regions):
        if not region:
            continue
        allowed[number] = False
        for left, top, right, bottom in region:
            inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
            if not inside.any():
                row = min(height - 1, int((top + bottom) / 2 * height))
                column = min(width - 1, int((left + right) / 2 * width))
                inside[row, column] = True
            allowed[number] |= inside
    return allowed
