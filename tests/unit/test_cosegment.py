"""Co-segmentation against its formula, written out over the full matrix of similarities."""

import doctest
import subprocess
import sys
from importlib import import_module
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from reco_ray.cosegmentation import Cosegmentation, context_weights, cosegment

# The package exports the function under its module's name, so an attribute look-up would find the function.
MODULE = import_module("reco_ray.cosegmentation.cosegment")


def plain_support(features: Tensor, weights: Tensor, pairing: str = "exact") -> Tensor:
    unit = normalize(features, dim=1)
    similarity = torch.einsum("nchw,mcxy->nhwmxy", unit, unit) * weights
    n = len(features)
    columns = [slice(j, j + 1 if pairing == "exact" else 2 * j + 1) for j in range(n)]
    return torch.stack([similarity[:, :, :, images].amax((3, 4, 5)) for images in columns]).mean(0)


def plain_reference(seeds: Tensor, reduction: str) -> Tensor:
    n = len(seeds)
    if reduction == "mean":
        reference = sum(seeds) / n
    elif reduction == "rank_weighted":
        reference = sum((1 - i / n) * seed for i, seed in enumerate(seeds))
    else:
        to_others = [sum(cosine_similarity(a, b, dim=0) for b in seeds) for a in seeds]
        # Two seeds are equally similar to each other; the first wins.
        best = next(i for i, value in enumerate(to_others) if value > max(to_others) - 1e-5)
        reference = seeds[best]
    return reference / reference.norm().clamp_min(1e-12)


def features_at(features: Tensor, locations: Tensor) -> Tensor:
    return torch.stack(
        [image[:, row, column] for image, (row, column) in zip(features, locations, strict=True)]
    )


def check(result: Cosegmentation, features: Tensor, weights: Tensor, reduction: str, pairing: str) -> None:
    """Everything in the result follows from the plain formula, up to rounding."""
    support = plain_support(features, weights, pairing)
    torch.testing.assert_close(result.support, support, rtol=0, atol=1e-5)

    assert result.seed_locations.dtype == torch.int64
    at_seeds = torch.stack(
        [s[row, column] for s, (row, column) in zip(support, result.seed_locations, strict=True)]
    )
    torch.testing.assert_close(at_seeds, support.amax((1, 2)), rtol=0, atol=1e-5)

    assert torch.equal(result.seed_features, features_at(features, result.seed_locations))
    expected = plain_reference(result.seed_features, reduction)
    torch.testing.assert_close(result.reference, expected, rtol=0, atol=1e-4)


@st.composite
def exemplars(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Features (n, c, h, w) and weights (n, h, w), some constant or zero, and zero weights."""
    n, channels = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    features = torch.randn(n, channels, height, width, generator=generator) * draw(
        st.sampled_from([0.01, 1, 100])
    )
    if draw(st.booleans()):
        features = features[:1, :, :1, :1].expand(n, channels, height, width)
    zeros = torch.rand(n, 1, height, width, generator=generator) < draw(st.sampled_from([0, 0.3, 1]))
    features = features.masked_fill(zeros, 0)
    weights = torch.rand(n, height, width, generator=generator) * draw(st.sampled_from([1e-30, 1, 50]))
    no_weight = torch.rand(n, height, width, generator=generator) < draw(st.sampled_from([0, 0.5, 1]))
    return features, weights.masked_fill(no_weight, 0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    exemplars(),
    st.sampled_from(get_args(MODULE.Reduction)),
    st.sampled_from(get_args(MODULE.Pairing)),
    st.integers(1, 60),
    st.integers(1, 2000),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_streamed_equals_the_plain_formula(inputs, reduction, pairing, locations, products, dtype):
    features, weights = (each.to(dtype) for each in inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "STRIP_LOCATIONS", locations)  # strips of one image by one, of some, of all
        patch.setattr(MODULE, "STRIP_PRODUCTS", products)
        result = cosegment(features, weights, reduction=reduction, pairing=pairing)
    assert result.reference.dtype == result.support.dtype == dtype
    # Rounding errors grow and shrink with the weights.
    scale = weights.max() if weights.any() else 1
    scaled = Cosegmentation(
        result.reference, result.seed_features, result.seed_locations, result.support / scale
    )
    check(scaled, features, weights / scale, reduction, pairing)


@pytest.mark.parametrize("pairing", get_args(MODULE.Pairing))
@pytest.mark.parametrize("reduction", get_args(MODULE.Reduction))
def test_several_strips_and_an_incomplete_one_at_the_default_size(reduction, pairing):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 32, 14, 14, generator=generator)
    weights = torch.rand(6, 14, 14, generator=generator)
    assert 6 % (MODULE.STRIP_LOCATIONS // 14**2) != 0
    result = cosegment(features, weights, reduction=reduction, pairing=pairing)
    check(result, features, weights, reduction, pairing)
    seeds = plain_support(features, weights, pairing).flatten(1).argmax(1)
    assert result.seed_locations.tolist() == [[seed // 14, seed % 14] for seed in seeds.tolist()]


def test_an_image_larger_than_a_strip_is_high():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 8, 30, 29, generator=generator)
    assert MODULE.STRIP_LOCATIONS < 30 * 29
    check(cosegment(features), features, torch.ones(2, 30, 29), "mean", "exact")


def test_the_planted_object_is_found_in_every_image():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 64, 7, 9, generator=generator)
    concept = torch.randn(64, generator=generator)
    planted = torch.stack([torch.arange(8) % 7, torch.arange(8)], dim=1)
    for image, (row, column) in zip(features, planted, strict=True):
        image[:, row, column] = 3 * concept
    result = cosegment(features)
    assert torch.equal(result.seed_locations, planted)
    torch.testing.assert_close(result.reference, concept / concept.norm())
    torch.testing.assert_close(result.seed_features, (3 * concept).expand(8, 64))


def test_weights_move_the_seed_to_what_they_favour():
    features = torch.zeros(2, 2, 1, 2)
    features[:, 0, 0, 0] = features[:, 1, 0, 1] = 1  # the same two things in both images
    favour_second = torch.tensor([0.2, 0.9]).expand(2, 1, 2)
    assert cosegment(features).seed_locations.tolist() == [[0, 0], [0, 0]]
    result = cosegment(features, favour_second)
    assert result.seed_locations.tolist() == [[0, 1], [0, 1]]
    torch.testing.assert_close(result.support, favour_second)


def test_no_weights_are_weights_of_one():
    features = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cosegment(features).support, cosegment(features, torch.ones(3, 4, 4)).support)


def test_as_released_takes_the_maximum_over_images_j_to_2j():
    features = torch.zeros(3, 3, 1, 1)
    features[0, 0] = features[1, 1] = features[2, 2] = 1  # each image is like itself only
    # Image 0 alone; images 1 and 2; image 2 alone (3 and 4 do not exist).
    support = cosegment(features, pairing="as_released").support.flatten()
    torch.testing.assert_close(support, torch.tensor([1, 1, 2]) / 3)
    torch.testing.assert_close(cosegment(features).support.flatten(), torch.ones(3) / 3)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("mean", [4.0, 4.0, 1.0]), ("rank_weighted", [3.0, 11 / 3, 1 / 3]), ("medoid", [1.0, 1.0, 0.0])],
)
def test_reductions(reduction, expected):
    seeds = torch.tensor([[1.0, 3.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    features = seeds[:, :, None, None]  # one location an image: it is the seed
    if reduction == "medoid":
        features = torch.cat([features, torch.tensor([2.0, 2.0, 0.0]).view(1, 3, 1, 1)])
    reference = cosegment(features, reduction=reduction).reference
    torch.testing.assert_close(reference, normalize(torch.tensor(expected), dim=0))


def test_the_first_of_two_equally_similar_seeds_is_the_medoid():
    seeds = torch.randn(2, 7, 1, 1, generator=torch.Generator().manual_seed(0))
    for pair in (seeds, seeds.flip(0)):
        torch.testing.assert_close(
            cosegment(pair, reduction="medoid").reference, normalize(pair[0].flatten(), dim=0)
        )


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 5, 3, 4), (3, 100, 7, 5), (5, 383, 14, 14), (9, 1280, 10, 9)]
)
def test_the_first_location_wins_a_tie(shape):
    n, channels, height, width = shape
    generator = torch.Generator().manual_seed(channels)
    features = torch.randn(1, channels, 1, 1, generator=generator).expand(shape)
    for weights in (None, torch.rand(n, height, width, generator=generator), torch.zeros(n, height, width)):
        assert not cosegment(features, weights).seed_locations.any()


def test_ties_are_broken_row_by_row():
    features = torch.ones(1, 2, 3, 4)
    features[0, :, 1, 3] = features[0, :, 2, 0] = torch.tensor([0.0, 5.0])
    weights = torch.zeros(1, 3, 4)
    weights[0, 1, 3] = 1  # only the two locations that equal this one reach a support of 1
    assert cosegment(features, weights).seed_locations.tolist() == [[1, 3]]


def test_zero_features_give_a_zero_reference_and_no_nan():
    result = cosegment(torch.zeros(3, 4, 2, 2), torch.rand(3, 2, 2), reduction="medoid")
    assert not result.reference.any()
    assert not result.support.any()
    assert not result.seed_locations.any()


def test_one_image_is_its_own_exemplar():
    features = torch.randn(1, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    for pairing in get_args(MODULE.Pairing):
        result = cosegment(features, pairing=pairing)
        torch.testing.assert_close(result.support, torch.ones(1, 4, 5))
        torch.testing.assert_close(result.reference, normalize(features[0, :, 0, 0], dim=0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 16, 5, 5, generator=generator).to(dtype)
    weights = torch.rand(4, 5, 5, generator=generator).to(dtype)
    result, expected = cosegment(features, weights), cosegment(features.float(), weights.float())
    assert result.reference.dtype == result.seed_features.dtype == result.support.dtype == torch.float32
    assert torch.equal(result.support, expected.support)
    assert torch.equal(result.reference, expected.reference)


def test_autocast_and_gradients_change_nothing():
    features = torch.randn(4, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    references = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    expected, expected_weights = cosegment(features), context_weights(features, references)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = cosegment(features.requires_grad_())
        weights = context_weights(features, references)
    assert torch.equal(result.support, expected.support)
    assert torch.equal(weights, expected_weights)
    assert not result.reference.requires_grad


def test_inputs_are_left_as_they_were():
    generator = torch.Generator().manual_seed(0)
    # Channels last: the layout in which the locations of an image need no copy to become rows.
    features = torch.randn(2, 6, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    weights = torch.rand(2, 3, 3, generator=generator)
    copies = features.clone(), weights.clone()
    cosegment(features, weights)
    assert torch.equal(features, copies[0])
    assert torch.equal(weights, copies[1])


FEATURES, WEIGHTS = torch.ones(2, 3, 4, 5), torch.ones(2, 4, 5)
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": FEATURES[0]}, "features must be"),
        ({"features": FEATURES[:0], "weights": WEIGHTS[:0]}, "features must be a non-empty"),
        ({"features": FEATURES.int()}, "features must be floating point, got torch.int32"),
        ({"features": FEATURES * NAN}, "features must be finite"),
        ({"features": FEATURES.index_fill(3, torch.tensor(2), INFINITY)}, "features must be finite"),
        ({"weights": WEIGHTS[:1]}, r"weights must be \(n, h, w\) = \(2, 4, 5\)"),
        ({"weights": WEIGHTS[:, None]}, "weights must be"),
        ({"weights": WEIGHTS.bool()}, "weights must be floating point"),
        ({"weights": WEIGHTS.index_fill(2, torch.tensor(4), NAN)}, "weights must be finite"),
        ({"weights": WEIGHTS * INFINITY}, "weights must be finite"),
        ({"weights": WEIGHTS - 1.5}, "weights must not be negative, the lowest is -0.5"),
        ({"reduction": "median"}, "reduction must be one of .*medoid.*got 'median'"),
        ({"pairing": "released"}, "pairing must be one of .*as_released.*got 'released'"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        cosegment(**{"features": FEATURES, "weights": WEIGHTS} | arguments)


def test_context_weights_fall_with_the_similarity_to_each_reference():
    features = torch.tensor([[4.0, 0.0], [-0.5, 0.0], [0.0, 3.0], [0.0, 0.0]]).T.view(1, 2, 2, 2)
    references = torch.tensor([[7.0, 0.0], [0.0, 0.0]])
    weights = context_weights(features, references)
    away, towards = 1 / (1 + torch.tensor([-1.0, 1.0]).exp())
    first = torch.stack([towards, away, torch.tensor(0.5), torch.tensor(0.5)]).view(2, 2)
    torch.testing.assert_close(weights, torch.stack([first, torch.full((2, 2), 0.5)])[None])


def test_context_weights_of_several_images_and_half_precision():
    generator = torch.Generator().manual_seed(0)
    features, references = (
        torch.randn(2, 5, 3, 4, generator=generator),
        torch.randn(3, 5, generator=generator),
    )
    weights = context_weights(features, references)
    assert weights.shape == (2, 3, 3, 4)
    cosine = cosine_similarity(features[1, :, 2, 3], references[2], dim=0)
    torch.testing.assert_close(weights[1, 2, 2, 3], 1 / (1 + cosine.exp()))
    halves = context_weights(features.half(), references.half())
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, weights, rtol=0, atol=1e-3)


def test_no_context_reference_weighs_nothing_down():
    weights = context_weights(FEATURES, torch.empty(0, 3))
    assert weights.shape == (2, 0, 4, 5)
    assert torch.equal(weights.prod(1), WEIGHTS)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (torch.ones(3), r"context_references must be \(m, c\) with c = 3"),
        (torch.ones(2, 4), "context_references must be"),
        (torch.ones(2, 3).int(), "context_references must be floating point"),
        (torch.ones(2, 3) * NAN, "context_references must be finite"),
    ],
)
def test_context_errors_name_the_argument(references, message):
    with pytest.raises(ValueError, match=message):
        context_weights(FEATURES, references)


def test_context_features_are_checked():
    with pytest.raises(ValueError, match="features must be"):
        context_weights(FEATURES[0], torch.ones(2, 3))


@pytest.mark.parametrize("name", ["cosegment", "context"])
def test_examples(name):
    result = doctest.testmod(import_module(f"reco_ray.cosegmentation.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


PEAK_MEMORY = """
import re
from pathlib import Path
import torch
from reco_ray.cosegmentation import cosegment

def status(field):
    return int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

features, weights = torch.randn(50, 384, 14, 14), torch.rand(50, 14, 14)
cosegment(features[:2], weights[:2])  # loads the kernels
before = status("VmRSS")
cosegment(features, weights)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_stays_far_below_the_full_matrix():
    run = subprocess.run([sys.executable, "-c", PEAK_MEMORY], capture_output=True, text=True, check=True)
    growth_in_mb = float(run.stdout)
    features_in_mb = 50 * 384 * 14 * 14 * 4 / 2**20
    # Below the one copy of the features that it must make, the measurement would be wrong.
    assert features_in_mb < growth_in_mb < 150
