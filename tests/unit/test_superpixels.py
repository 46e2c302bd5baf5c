"""Superpixels: cases worked out by hand, images of all shapes, and the package that they need."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from images import photograph
from scipy import ndimage

from reco_ray.config import SegmentSettings
from reco_ray.errors import MissingPackageError
from reco_ray.segmentation.refine import refine, require_refinement
from reco_ray.segmentation.refine.superpixels import superpixels
from reco_ray.segmentation.segment import label_scores
from reco_ray.segmentation.target_set import BACKGROUND, Targets
from reco_ray.stages import run


def scores_for(image: torch.Tensor, concepts: int = 3) -> torch.Tensor:
    return torch.rand(concepts, *image.shape[1:], generator=torch.Generator().manual_seed(0))


def means_by_definition(scores: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """By SciPy, one concept after the other."""
    numbers = range(int(regions.max()) + 1)
    means = [
        torch.from_numpy(ndimage.mean(each.double().numpy(), regions.numpy(), numbers)) for each in scores
    ]
    return torch.stack(means).float()[:, regions]


def picture(height: int, width: int, number: int = 21) -> torch.Tensor:
    """A photograph stretched to a size, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(photograph(number, 1000).resize((width, height)))).permute(2, 0, 1)


def test_two_halves_by_hand() -> None:
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, :, 40:] = 255
    scores = torch.full((2, 64, 96), 0.5)
    # Every column of the left half has the mean (0.9 + 3 * 0.1) / 4, every column of the right one 0.2.
    scores[0, :, :40] = torch.tensor([0.9, 0.1, 0.1, 0.1]).repeat(16)[:, None]
    scores[0, :, 40:] = 0.2
    refined = refine(scores, image, "superpixels")
    # Columns beside the edge are mixed by the smoothing and may be a region of their own, with pixels of both halves.
    torch.testing.assert_close(refined[0, :, :36], torch.full((64, 36), 0.3))
    torch.testing.assert_close(refined[0, :, 44:], torch.full((64, 52), 0.2))
    torch.testing.assert_close(refined[1], scores[1])


def stripes(*greys: int) -> torch.Tensor:
    """Three stripes of 60 x 40 pixels, far from each other in a photograph's terms only by their grey."""
    return torch.tensor(greys, dtype=torch.uint8).repeat_interleave(40).expand(3, 60, -1).contiguous()


def three_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stripe is a region; Felzenszwalb's smoothing makes more of the edges."""
    numbers = torch.arange(3).repeat_interleave(40).expand(60, -1)
    monkeypatch.setattr(
        sys.modules["reco_ray.segmentation.refine.superpixels"], "superpixels", lambda image: numbers
    )


def test_scores_spread_between_regions_that_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    three_regions(monkeypatch)
    # Greys 100 and 101 are alike, 250 resembles neither: it keeps its own score.
    scores = (
        torch.tensor([[1.0, 0.0, 0.4], [0.0, 1.0, 0.6]]).repeat_interleave(40, 1)[:, None].expand(-1, 60, -1)
    )
    refined = refine(scores, stripes(100, 101, 250), "superpixels")
    # x = 0.4 * own + 0.6 * other: of two that are alike, 0.4 / (1 - 0.6 ** 2) of its own and 0.6 times that.
    own = 0.4 / (1 - 0.36)
    expected = torch.tensor([[own, 0.6 * own, 0.4], [0.6 * own, own, 0.6]]).repeat_interleave(40, 1)
    torch.testing.assert_close(refined, expected[:, None].expand(-1, 60, -1), atol=1e-4, rtol=0)


def test_a_larger_region_gives_more(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(3).repeat_interleave(torch.tensor([20, 20, 80])).expand(60, -1)
    module = sys.modules["reco_ray.segmentation.refine.superpixels"]
    monkeypatch.setattr(module, "superpixels", lambda image: numbers)
    scores = torch.tensor([[0.0, 1.0, 0.0]]).repeat_interleave(torch.tensor([20, 20, 80]), 1)
    scores = scores[:, None].expand(-1, 60, -1)
    same = torch.full((3, 60, 120), 90, dtype=torch.uint8)
    refined = refine(scores, same, "superpixels")[0, 0, [0, 20, 40]]
    shares = torch.tensor([[0, 0.2, 0.8], [0.2, 0, 0.8], [0.5, 0.5, 0]])
    walk = torch.eye(3) - 0.6 * shares
    torch.testing.assert_close(refined, walk.inverse() @ (0.4 * torch.tensor([0.0, 1.0, 0.0])))


def test_features_tell_regions_of_one_colour_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    three_regions(monkeypatch)
    scores = torch.tensor([[1.0, 0.0, 0.0]]).repeat_interleave(40, 1)[:, None].expand(-1, 60, -1)
    # A location of features per stripe: the first two are the same, the third is opposite.
    features = torch.tensor([[1.0, 2.0, -1.0], [1.0, 2.0, -1.0]])[:, None]
    refined = refine(scores, stripes(100, 100, 100), "superpixels", features)[0, 0, [0, 40, 80]]
    own = 0.4 / (1 - 0.36)
    torch.testing.assert_close(refined[:2], torch.tensor([own, 0.6 * own]), atol=1e-4, rtol=0)
    assert (
        refined[2] < 0.01
    )  # exp(-2 / 0.15) of the likeness, below what a region must find to give up its own
    by_colour = refine(scores, stripes(100, 100, 100), "superpixels")[0, 0, [0, 40, 80]]
    assert by_colour[2] > 0.2


def test_a_region_takes_the_label_with_the_highest_mean() -> None:
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[0, :, 40:] = 200
    scores = torch.full((2, 64, 96), 0.3)
    scores[0, :, :24] = 0.9  # mean 0.66 on the left, and 0.3 on the right
    scores[1, :, 60:] = 0.4
    targets = Targets(scores.new_empty(0), scores.new_empty(0), torch.tensor([1, 2]), background=True)
    settings = SegmentSettings(refine="superpixels", background_threshold=0.5)
    found = label_scores(scores, targets, image.permute(1, 2, 0), (64, 96), settings)
    assert (found.labels[:, :36] == 1).all()
    assert (found.labels[:, 44:] == BACKGROUND).all()


@pytest.mark.parametrize(
    "image",
    [
        picture(448, 672),
        picture(448, 1792),  # the longest panorama that `ImageTransform.fit` leaves
        picture(1792, 448),
        picture(64, 64),
        picture(64, 96),
        picture(225, 301),
        picture(448, 608).float().mean(0, keepdim=True).byte().expand(3, -1, -1),
        torch.full((3, 64, 64), 77, dtype=torch.uint8),
    ],
    ids=["photograph", "panorama", "tower", "64 px", "small", "odd", "greyscale", "constant"],
)
def test_scores_are_those_of_regions(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, regions = scores_for(image), superpixels(image)
    count = int(regions.max()) + 1
    assert regions.shape == image.shape[1:]
    assert torch.equal(regions.unique(), torch.arange(count))
    if image.float().std() == 0:
        assert count == 1
    else:
        assert count >= 10
        # No region is smaller than 60 pixels of a copy with a short side of 224; at the edges, pixels are rounded.
        smallest = torch.bincount(regions.flatten()).min()
        assert smallest >= 0.8 * 60 * (min(image.shape[1:]) / 224) ** 2
    refined = refine(scores, image, "superpixels")
    assert refined.isfinite().all()
    means = means_by_definition(scores, regions)
    # Spreading mixes the means of regions: all pixels of a region have one score, within the range of the means.
    torch.testing.assert_close(refined, means_by_definition(refined, regions))
    assert (refined.flatten(1).amax(1) <= means.flatten(1).amax(1) + 1e-6).all()
    assert (refined.flatten(1).amin(1) >= means.flatten(1).amin(1) - 1e-6).all()
    shares = refine(scores / scores.sum(0), image, "superpixels")
    torch.testing.assert_close(shares.sum(0), torch.ones(image.shape[1:]))
    monkeypatch.setattr(sys.modules["reco_ray.segmentation.refine.superpixels"], "FLOW", 0.0)
    torch.testing.assert_close(refine(scores, image, "superpixels"), means)


def test_regions_keep_their_share_of_a_smaller_image() -> None:
    """Small images are not resized: parameters shrink instead."""
    numbers = range(0, 28, 4)
    counts = [
        np.median([int(superpixels(picture(side, side * 3 // 2, number)).max()) + 1 for number in numbers])
        for side in (448, 224, 64)
    ]
    assert max(counts) <= 1.5 * min(counts)


def test_the_mean_of_a_large_constant_region_is_its_score() -> None:
    """Sums of a million float32 would drift by percents."""
    image = torch.zeros(3, 1000, 1200, dtype=torch.uint8)
    refined = refine(torch.full((2, 1000, 1200), 0.45), image, "superpixels")
    assert torch.equal(refined, torch.full_like(refined, 0.45))


def test_the_missing_package_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_refinement("superpixels")
    monkeypatch.setitem(sys.modules, "skimage", None)
    line = "superpixels needs the package scikit-image: pip install scikit-image"
    with pytest.raises(MissingPackageError, match=line):
        refine(torch.ones(1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), "superpixels")
    require_refinement("pamr")
    places = {"corpus": str(tmp_path), "images": str(tmp_path), "out": str(tmp_path / "out")}
    with pytest.raises(MissingPackageError, match=line):
        run(**places, concepts="cat", refine="superpixels")
    assert not (tmp_path / "out").exists()
