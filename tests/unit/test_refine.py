import pytest
import torch
import torch.nn.functional as F

from reco_ray.segmentation import concept_scores, label_map, refine
from reco_ray.segmentation.refine.crf import PermutohedralLattice

REAL = ["pamr", "crf", "superpixels"]


def random_scene(seed: int, *, concepts: int = 4, noise: float, size: tuple[int, int] = (24, 20)):
    """Scores and an image of patches of one colour each, with noise of so many levels of 255."""
    generator = torch.Generator().manual_seed(seed)
    patches = F.interpolate(torch.rand(1, 3, 4, 3, generator=generator), size)[0] * 255
    image = (patches + noise * torch.randn(3, *size, generator=generator)).clamp(0, 255).byte()
    smooth = F.interpolate(torch.rand(1, concepts, 4, 3, generator=generator), size, mode="bilinear")[0]
    return 0.8 * smooth + 0.2 * torch.rand(concepts, *size, generator=generator), image


def intersection_over_union(first: torch.Tensor, second: torch.Tensor) -> float:
    return ((first & second).sum() / (first | second).sum()).item()


@pytest.mark.parametrize("method", REAL)
def test_a_noisy_blob_snaps_to_the_edge_in_the_image(method):
    height, width = 60, 80
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    truth = (rows - 30).square() + (columns - 40).square() < 18**2
    colours = torch.where(truth, 190.0, 90.0) + torch.randn(3, height, width, generator=generator)
    blob = torch.sigmoid((20 - ((rows - 33).square() + (columns - 37).square()).sqrt()) / 6)
    blob = (blob + 0.15 * torch.randn(height, width, generator=generator)).clamp(0, 1)

    refined = refine(torch.stack([1 - blob, blob]), colours.byte(), method)
    before = intersection_over_union(blob > 0.5, truth)
    after = intersection_over_union(refined.argmax(0).bool(), truth)
    assert before < 0.7
    # In an image as small as this, superpixels along the edge have a few noisy pixels each.
    assert after > (0.85 if method == "superpixels" else 0.97)


@pytest.mark.parametrize("method", REAL)
def test_scores_stay_probabilities_and_the_input_stays_as_it_was(method):
    scores, image = random_scene(0, noise=5)
    shares = scores / scores.sum(0)
    kept, kept_image = shares.clone(), image.clone()
    refined = refine(shares, image, method)
    assert refined.shape == scores.shape
    assert refined.dtype == torch.float32
    assert (refined >= 0).all()
    torch.testing.assert_close(refined.sum(0), torch.ones(scores.shape[1:]))
    assert torch.equal(shares, kept)
    assert torch.equal(image, kept_image)


@pytest.mark.parametrize("method", REAL)
def test_a_constant_image_leaves_constant_scores_alone(method):
    image = torch.full((3, 30, 40), 128, dtype=torch.uint8)
    even = torch.full((4, 30, 40), 0.25)
    torch.testing.assert_close(refine(even, image, method), even)
    uneven = torch.tensor([0.2, 0.5, 0.3]).view(3, 1, 1).expand(3, 30, 40)
    assert (refine(uneven, image, method).argmax(0) == 1).all()


@pytest.mark.parametrize("method", REAL)
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 3)])
@pytest.mark.parametrize("concepts", [1, 3])
def test_small_images_and_one_concept(method, size, concepts):
    scores, image = random_scene(1, concepts=concepts, noise=5, size=size)
    shares = scores / scores.sum(0)
    refined = refine(shares, image, method)
    assert refined.shape == (concepts, *size)
    torch.testing.assert_close(refined.sum(0), torch.ones(size))


@pytest.mark.parametrize("method", REAL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_give_float32(method, dtype):
    scores, image = random_scene(2, noise=1)
    refined = refine(scores.to(dtype), image, method)
    assert refined.dtype == torch.float32
    assert (refined.argmax(0) == refine(scores, image, method).argmax(0)).float().mean() > 0.99


@pytest.mark.parametrize("method", REAL)
def test_autocast_changes_nothing(method):
    scores, image = random_scene(2, noise=3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = refine(scores, image, method)
    assert torch.equal(inside, refine(scores, image, method))


def test_none_gives_the_scores_back():
    scores, image = random_scene(3, noise=5)
    assert torch.equal(refine(scores, image), scores)


@pytest.mark.parametrize("method", REAL)
def test_only_the_concepts_that_won_somewhere_need_refining(method):
    generator = torch.Generator().manual_seed(0)
    features, references = (
        torch.randn(1, 8, 4, 5, generator=generator),
        torch.randn(40, 8, generator=generator),
    )
    image = torch.randint(0, 256, (3, 32, 40), generator=generator, dtype=torch.uint8)
    present = label_map(features, references, output_size=(32, 40)).labels.unique().long()
    scores = concept_scores(features, references, output_size=(32, 40), concepts=present)[0]
    refined = refine(scores, image, method)
    assert 1 < len(present) < 40
    assert refined.shape == (len(present), 32, 40)
    assert set(present[refined.argmax(0)].unique().tolist()) <= set(present.tolist())


@pytest.mark.parametrize(
    ("scores", "image", "method", "named"),
    [
        (torch.ones(4, 5), torch.zeros(3, 4, 5, dtype=torch.uint8), "crf", "scores"),
        (torch.ones(0, 4, 5), torch.zeros(3, 4, 5, dtype=torch.uint8), "crf", "scores"),
        (torch.ones(2, 4, 5, dtype=torch.int64), torch.zeros(3, 4, 5, dtype=torch.uint8), "crf", "scores"),
        (torch.ones(2, 4, 5), torch.zeros(3, 5, 4, dtype=torch.uint8), "pamr", "image"),
        (torch.ones(2, 4, 5), torch.zeros(4, 5, 3, dtype=torch.uint8), "pamr", "image"),
        (torch.ones(2, 4, 5), torch.zeros(3, 4, 5), "none", "image"),
    ],
)
def test_errors_name_the_argument(scores, image, method, named):
    with pytest.raises(ValueError, match=f"^{named}:"):
        refine(scores, image, method)


def pamr_by_definition(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """PAMR with every window written out, borders replicated."""

    def windows(maps: torch.Tensor) -> torch.Tensor:
        """(c, H, W) -> (c, 6, 9, H, W)."""
        height, width = maps.shape[1:]
        found = []
        for dilation in (1, 2, 4, 8, 12, 24):
            padded = F.pad(maps[None], [dilation] * 4, mode="replicate")[0]
            starts = [(dilation * row, dilation * column) for row in range(3) for column in range(3)]
            found.append(torch.stack([padded[:, r : r + height, c : c + width] for r, c in starts], 1))
        return torch.stack(found, 1)

    around = [0, 1, 2, 3, 5, 6, 7, 8]
    colours = image.double()
    deviation = windows(colours).flatten(1, 2).std(1)
    difference = (windows(colours)[:, :, around] - colours[:, None, None]).abs().flatten(1, 2)
    weights = (-difference / (0.1 * deviation[:, None] + 1e-8)).mean(0).softmax(0)
    scores = scores.double()
    for _ in range(10):
        scores = (windows(scores)[:, :, around].flatten(1, 2) * weights).sum(1)
    return scores.float()


@pytest.mark.parametrize("size", [(170, 230), (24, 20), (1, 9)])  # the first in several bands
def test_pamr_is_its_definition(size):
    scores, image = random_scene(4, noise=8, size=size)
    expected = pamr_by_definition(scores, image)
    torch.testing.assert_close(refine(scores, image, "pamr"), expected, rtol=0, atol=1e-5)


def crf_by_definition(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Mean field with both kernels as full (H W) x (H W) matrices."""
    _, height, width = scores.shape
    unary = -(scores / scores.sum(0)).clamp_min(1e-5).log().double().flatten(1)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([rows, columns]).flatten(1).T.double()
    colour = image.flatten(1).T.double()

    def kernel(points: torch.Tensor) -> torch.Tensor:
        gaussian = torch.exp(-0.5 * torch.cdist(points, points).square())
        scale = gaussian.sum(1).rsqrt()
        return scale[:, None] * gaussian * scale

    pairwise = 3 * kernel(place) + 4 * kernel(torch.cat([place / 67, colour / 3], 1))
    marginals = torch.softmax(-unary, 0)
    for _ in range(10):
        marginals = torch.softmax(marginals @ pairwise - unary, 0)
    return marginals.view_as(scores).float()


@pytest.mark.parametrize(
    # Where colours scatter by more than the kernel's deviation of 3 levels, a pixel has few companions and
    # its mean field may settle either way: single pixels then differ, most do not.
    ("noise", "worst_agreement", "mean_agreement", "mean_difference"),
    [(0, 1.0, 1.0, 0.001), (2, 0.99, 0.999, 0.002), (5, 0.93, 0.98, 0.012)],
)
def test_crf_is_close_to_its_definition(noise, worst_agreement, mean_agreement, mean_difference):
    agreements, differences = [], []
    for seed in range(20):
        scores, image = random_scene(seed, noise=noise)
        refined, expected = refine(scores, image, "crf"), crf_by_definition(scores, image)
        agreements.append((refined.argmax(0) == expected.argmax(0)).float().mean().item())
        differences.append((refined - expected).abs().mean().item())
    assert min(agreements) >= worst_agreement
    assert sum(agreements) / 20 >= mean_agreement
    assert sum(differences) / 20 <= mean_difference


def test_crf_of_one_colour_is_exact_to_a_hundredth():
    scores, image = random_scene(5, noise=0)
    image = torch.full_like(image, 77)
    difference = refine(scores, image, "crf") - crf_by_definition(scores, image)
    assert difference.abs().max() < 0.01


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_the_lattice_is_a_symmetric_gaussian_filter(dimensions):
    points = 1.5 * torch.randn(300, dimensions, generator=torch.Generator().manual_seed(dimensions))
    approximate = PermutohedralLattice(points).filter(torch.eye(300))
    torch.testing.assert_close(approximate, approximate.T)
    exact = torch.exp(-0.5 * torch.cdist(points, points).square())
    values = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    mean, expected = approximate @ values / approximate.sum(1, True), exact @ values / exact.sum(1, True)
    assert (mean - expected).abs().mean() < 0.04


def test_the_lattice_separates_points_that_are_far_apart():
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [30.0, -40.0]])
    weights = PermutohedralLattice(points).filter(torch.eye(3))
    assert weights[0, 1] > 0.5 * weights[0, 0]
    assert weights[:2, 2].tolist() == [0, 0]
