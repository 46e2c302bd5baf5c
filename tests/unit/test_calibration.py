"""Scores made comparable over images: concepts whose cosines lie higher everywhere win no more than others."""

import torch

from reco_ray.segmentation.calibration import Calibration, calibration, moments, probabilities


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


def test_a_concept_that_scores_higher_everywhere_no_longer_wins_everywhere() -> None:
    maps = factors()
    raw = (maps[0] * torch.nn.functional.interpolate(maps[1], (8, 10))).argmax(1)
    assert (raw == 0).float().mean() > 0.9
    likely = probabilities(maps, calibration(moments([each.logit() for each in maps])))
    assert likely.shape == (6, 3, 8, 10)
    torch.testing.assert_close(likely.sum(1), torch.ones(6, 8, 10))
    shares = torch.bincount(likely.argmax(1).flatten(), minlength=3) / likely[:, 0].numel()
    assert shares.min() > 0.2


def test_a_concept_that_scores_the_same_everywhere_is_no_division_by_zero() -> None:
    maps = [torch.full((1, 2, 3, 3), 0.5)]
    likely = probabilities(maps, calibration(moments([each.logit() for each in maps])))
    torch.testing.assert_close(likely, torch.full_like(likely, 0.5))


def test_a_calibration_survives_json() -> None:
    made = calibration(moments(factors()))
    read = Calibration.from_lists(made.to_lists())
    assert torch.equal(read.means, made.means)
    assert torch.equal(read.deviations, made.deviations)
