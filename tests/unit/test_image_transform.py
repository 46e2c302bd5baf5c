"""Geometry: what a model sees of an image."""

import numpy as np
import pytest
import torch
from images import photograph

from reco_ray.models.image import ImageTransform

TRANSFORM = ImageTransform(size=32, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (32, 32), (5, 400)])
def test_crop_is_the_centre_of_the_resized_image(size: tuple[int, int]) -> None:
    image = photograph(0, 400).resize(size)
    scale = 32 / min(size)
    width, height = max(32, round(size[0] * scale)), max(32, round(size[1] * scale))
    left, top = (width - 32) // 2, (height - 32) // 2
    expected = np.asarray(image.resize((width, height), 3).crop((left, top, left + 32, top + 32)))
    assert np.abs(TRANSFORM.crop(image).astype(int) - expected).max() <= 2


def test_fit_keeps_the_aspect_in_multiples_and_bounds_panoramas() -> None:
    image = photograph(0, 400).resize((300, 200))
    assert TRANSFORM.fit(image, 64, 32).shape == (64, 96, 3)
    assert TRANSFORM.fit(image.resize((4000, 20)), 64, 32).shape == (64, 256, 3)
    assert TRANSFORM.fit(image.resize((10, 10)), 64, 32).shape == (64, 64, 3)


def test_normalize_uses_mean_and_std_of_each_channel() -> None:
    pixels = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)
    normal = TRANSFORM.normalize(pixels)
    assert normal.shape == (1, 3, 1, 1)
    torch.testing.assert_close(normal.flatten(), torch.tensor([1.0, -1.0, 0.2]))
