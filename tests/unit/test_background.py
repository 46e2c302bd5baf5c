"""Where an image shows no concept: Otsu's threshold as scikit-image computes it, and the level of the background."""

import numpy as np
import pytest
import torch
from images import photograph
from skimage.filters import threshold_otsu

from reco_ray.segmentation.background import background_level, otsu

UNBOUNDED = -torch.inf


def bimodal(low: float, high: float, share: float, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(4000, generator=random)
    return torch.where(torch.rand(4000, generator=random) < share, high + values, low + values)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("low", "high", "share"), [(-3, 4, 0.2), (0, 6, 0.5), (-40, 80, 0.05), (0, 0.5, 0.5)]
)
def test_otsu_is_that_of_scikit_image(low: float, high: float, share: float, seed: int) -> None:
    values = bimodal(low, high, share, seed)
    bins = float(values.max() - values.min()) / 256
    theirs = float(threshold_otsu(values.numpy(), nbins=256))
    # Theirs is the centre of the last bin below the threshold, ours its edge, in the middle of an empty gap.
    split = (values > otsu(values)).float().mean()
    assert float(split) == pytest.approx(float((values > theirs + bins / 2).float().mean()), abs=0.003)


@pytest.mark.parametrize("number", [0, 5, 21, 26])
def test_otsu_divides_a_photograph_as_scikit_image_does(number: int) -> None:
    grey = np.asarray(photograph(number, 300).convert("L"))
    ours = otsu(torch.from_numpy(grey.copy()).float())
    assert ours == pytest.approx(float(threshold_otsu(grey)), abs=1.5)


def test_otsu_lies_in_the_middle_of_a_gap() -> None:
    assert otsu(torch.tensor([0.0, 0.0, 1.0, 1.0])) == pytest.approx(0.5, abs=0.01)
    assert otsu(torch.tensor([-2.0, 8.0])) == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e6])
def test_otsu_of_equal_values_is_the_value(value: float) -> None:
    assert otsu(torch.full((7,), value)) == value
    assert otsu(torch.tensor([value])) == value
    assert background_level(torch.full((3, 4), value), UNBOUNDED) == pytest.approx(value)


def test_the_level_is_between_otsu_and_the_middle_of_the_range() -> None:
    values = torch.cat([torch.zeros(90), torch.full((9,), 4.0), torch.tensor([10.0])])
    assert background_level(values, UNBOUNDED) == pytest.approx((otsu(values) + 5.0) / 2)
    # It moves with the logits: only their differences within the image count.
    assert background_level(values + 7, UNBOUNDED) == pytest.approx(
        7 + background_level(values, UNBOUNDED), abs=1e-4
    )
    assert background_level(values * 3, UNBOUNDED) == pytest.approx(
        3 * background_level(values, UNBOUNDED), abs=1e-4
    )
    assert background_level(values.view(10, 10), UNBOUNDED) == background_level(values, UNBOUNDED)


def test_the_level_is_at_least_that_of_the_calibration() -> None:
    values = bimodal(-3, 4, 0.2)
    level = background_level(values, UNBOUNDED)
    assert background_level(values, level - 1) == level
    assert background_level(values, level + 1) == level + 1
