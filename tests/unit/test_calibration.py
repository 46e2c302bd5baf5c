"""Scores made comparable over images: concepts whose cosines lie higher everywhere win no more than others."""

import torch

from reco_ray.segmentation.calibration import calibration, moments


def factors(images: int = 6, seed: int = 0) -> list[torch.Tensor]:
    """Two factors of three concepts at two resolutions; the first concept lies above the others everywhere."""
    random = torch.Generator().manual_seed(seed)
    offset = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1)
    scale = torch.tensor([0.1, 1.0, 0.5]).view(1, 3, 1, 1)
    shapes = [(images, 3, 8, 10), (images, 3, 4, 5)]
    return [torch.sigmoid(offset + scale * torch.randn(shape, generator=random)) for shape in shapes]


def test_moments_add_up_over_images() -> None:
    maps = factors()
    logits = [each.logit() for each in maps]
    parts = [moments([each[i : i + 1] for each in logits]) for i in range(6)]
    whole = calibration(moments(logits))
    added = calibration(torch.stack(parts).sum(0))
    torch.testing.assert_close(added.means, whole.means)
    torch.testing.assert_close(added.deviations, whole.deviations)
    flat = logits[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(whole.means[0], flat.mean(1))
    torch.testing.assert_close(whole.deviations[0], flat.std(1, correction=0))
