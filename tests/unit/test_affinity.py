"""Affinity pooling against the plain formula, one location at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from reco_ray.models import affinity
from reco_ray.models.affinity import pool_by_affinity

METHODS = ("proxyclip", "dinoiser")


def features(*shape, seed=0, offset=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset


def plain(language, visual, method):
    """The formula of the docstring, location by location, for one image."""
    height, width = visual.shape[1:]
    language = F.interpolate(language[None], (height, width), mode="bilinear", align_corners=False)[0]
    points = [visual[:, row, column] for row in range(height) for column in range(width)]
    words = [language[:, row, column] for row in range(height) for column in range(width)]
    cosine = [[F.cosine_similarity(p, q, dim=0).item() for q in points] for p in points]
    mean = sum(map(sum, cosine)) / len(points) ** 2
    pooled = torch.empty(len(language), height * width)
    for p, row in enumerate(cosine):
        if method == "proxyclip":
            weights = [math.exp(3 * (c - 1.2 * mean)) if c >= 1.2 * mean else 0.0 for c in row]
        else:
            weights = [c if c >= 0.2 else 0.0 for c in row]
        pooled[:, p] = sum(w * word for w, word in zip(weights, words, strict=True)) / sum(weights)
    return pooled.unflatten(1, (height, width))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(5, 4), (3, 2), (8, 9)])  # of the language features
def test_equals_the_plain_formula(method, size):
    language, visual = features(2, 6, *size), features(2, 8, 5, 4, seed=1, offset=0.4)
    pooled = pool_by_affinity(language, visual, method)
    assert pooled.shape == (2, 6, 5, 4)
    for image in range(2):
        torch.testing.assert_close(pooled[image], plain(language[image], visual[image], method))


@pytest.mark.parametrize("method", METHODS)
def test_constant_features_give_the_mean(method):
    language = features(1, 6, 4, 5)
    visual = features(1, 8, 1, 1, seed=1).expand(1, 8, 4, 5) * features(1, 1, 4, 5, seed=2).abs()
    expected = language.mean(dim=(2, 3), keepdim=True).expand_as(language)
    torch.testing.assert_close(pool_by_affinity(language, visual, method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_unrelated_locations_keep_their_features(method):
    language = features(1, 6, 4, 5)
    visual = torch.eye(20).unflatten(1, (4, 5))[None] * 7
    torch.testing.assert_close(pool_by_affinity(language, visual, method), language)


@pytest.mark.parametrize("method", METHODS)
def test_two_regions_do_not_mix(method):
    language = features(1, 6, 4, 4)
    visual = torch.zeros(1, 2, 4, 4)
    visual[:, 0, :, :2], visual[:, 1, :, 2:] = 1, 1
    pooled = pool_by_affinity(language, visual, method)
    for side in (slice(0, 2), slice(2, 4)):
        expected = language[..., side].mean(dim=(2, 3), keepdim=True)
        torch.testing.assert_close(pooled[..., side], expected.expand(1, 6, 4, 2))


@pytest.mark.parametrize("method", METHODS)
def test_rows_at_a_time_change_nothing(method, monkeypatch):
    language, visual = features(2, 6, 5, 5), features(2, 8, 5, 5, seed=1)
    whole = pool_by_affinity(language, visual, method)
    monkeypatch.setattr(affinity, "MAX_COSINES", 2 * 25 * 3)  # three rows, and one in the last step
    torch.testing.assert_close(pool_by_affinity(language, visual, method), whole)


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_vector_keeps_its_own_features(method):
    language, visual = features(1, 6, 3, 3), features(1, 8, 3, 3, seed=1)
    visual[..., 1, 1] = 0
    pooled = pool_by_affinity(language, visual, method)
    assert pooled.isfinite().all()
    if method == "dinoiser":
        torch.testing.assert_close(pooled[..., 1, 1], language[..., 1, 1])


def test_misuse_is_named():
    with pytest.raises(ValueError, match="must be proxyclip or dinoiser, got 'none'"):
        pool_by_affinity(features(1, 6, 3, 3), features(1, 8, 3, 3), "none")
    with pytest.raises(ValueError, match=r"must be .* got \(1, 6, 3, 3\) and \(2, 8, 3, 3\)"):
        pool_by_affinity(features(1, 6, 3, 3), features(2, 8, 3, 3), "dinoiser")
