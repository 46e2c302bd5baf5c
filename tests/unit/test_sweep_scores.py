"""The label-free scores: against their definitions written out, and what they must and must not depend on."""

import doctest
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from reco_ray.sweeps import scores
from reco_ray.sweeps.scores import (
    chance_corrected_agreement,
    label_counts,
    prediction_entropy,
    seed_agreement,
    support_margin,
)

GENERATOR = torch.Generator().manual_seed(0)


def test_examples() -> None:
    result = doctest.testmod(scores)
    assert result.attempted == 4
    assert result.failed == 0


# --- seed agreement -----------------------------------------------------------------------------------------


def test_seed_agreement_is_the_mean_cosine_of_pairs() -> None:
    seeds = torch.randn(7, 12, generator=GENERATOR)
    cosines = [F.cosine_similarity(a, b, dim=0) for a, b in combinations(seeds, 2)]
    assert seed_agreement(seeds) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-6)


def test_seed_agreement_knows_neither_scale_nor_order() -> None:
    seeds = torch.randn(5, 8, generator=GENERATOR)
    scaled = seeds * torch.tensor([1.0, 2.0, 0.1, 30.0, 7.0])[:, None]
    assert seed_agreement(scaled.flip(0)) == pytest.approx(seed_agreement(seeds), abs=1e-6)


def test_seed_agreement_of_equal_and_of_opposite_seeds() -> None:
    seed = torch.tensor([[3.0, 4.0]])
    assert seed_agreement(seed.repeat(4, 1)) == pytest.approx(1)
    assert seed_agreement(torch.cat([seed, -seed])) == pytest.approx(-1)
    assert seed_agreement(torch.zeros(3, 2)) == 0


@pytest.mark.parametrize("shape", [(1, 4), (4,), (2, 2, 2)])
def test_seed_agreement_needs_pairs(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"seed_features: must be \(n, c\) with n >= 2"):
        seed_agreement(torch.ones(shape))


# --- support margin -----------------------------------------------------------------------------------------


def test_support_margin_is_relative() -> None:
    support = torch.rand(6, 4, 5, generator=GENERATOR)
    expected = sum(1 - float(one.mean() / one.max()) for one in support) / 6
    assert support_margin(support) == pytest.approx(expected, abs=1e-6)
    assert support_margin(support / 32) == pytest.approx(expected, abs=1e-6)


def test_support_margin_of_flat_maps_is_zero() -> None:
    assert support_margin(torch.full((2, 3, 3), 0.7)) == pytest.approx(0, abs=1e-7)
    assert support_margin(torch.zeros(2, 3, 3)) == 0
    assert support_margin(-torch.rand(2, 3, 3)) == 0


@pytest.mark.parametrize("shape", [(3, 3), (0, 3, 3)])
def test_support_margin_needs_maps(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"support: must be \(n, h, w\)"):
        support_margin(torch.ones(shape))


# --- entropy ------------------------------------------------------------------------------------------------


def test_entropy_of_ties_and_of_certainty() -> None:
    assert prediction_entropy(torch.full((5, 2, 3), 0.3)) == pytest.approx(1)
    assert prediction_entropy(torch.zeros(5, 2, 3)) == pytest.approx(1)
    certain = F.one_hot(torch.tensor([[0, 2], [1, 1]]), 3).permute(2, 0, 1).float()
    assert prediction_entropy(certain) == 0


def test_entropy_is_that_of_the_scores_shares() -> None:
    maps = torch.rand(4, 3, 2, generator=GENERATOR)
    expected = torch.distributions.Categorical(probs=maps.permute(1, 2, 0)).entropy().mean()
    assert prediction_entropy(maps) == pytest.approx(
        float(expected) / torch.tensor(4.0).log().item(), abs=1e-6
    )
    assert prediction_entropy(maps * 1e-3) == pytest.approx(prediction_entropy(maps), abs=1e-6)


def test_entropy_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(ValueError, match=r"must be \(m, h, w\) with m >= 2"):
        prediction_entropy(torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="must not be negative"):
        prediction_entropy(-torch.ones(2, 2, 2))


# --- agreement ----------------------------------------------------------------------------------------------


def test_label_counts_meet_by_pair_and_add_up() -> None:
    first, second = torch.tensor([[0, 0], [1, 2]]), torch.tensor([[0, 1], [1, 0]])
    assert label_counts(first, second, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    halves = label_counts(first[:1], second[:1], 3) + label_counts(first[1:], second[1:], 3)
    assert torch.equal(halves, label_counts(first, second, 3))


def test_label_counts_refuse_other_sizes_and_labels() -> None:
    with pytest.raises(ValueError, match="second: must be"):
        label_counts(torch.zeros(2, 2).long(), torch.zeros(2, 3).long(), 2)
    with pytest.raises(ValueError, match=r"second: labels must be in \[0, 2\)"):
        label_counts(torch.zeros(2).long(), torch.tensor([0, 2]), 2)


def test_agreement_is_one_for_equal_labellings_and_zero_for_one_label() -> None:
    assert chance_corrected_agreement(torch.diag(torch.tensor([3, 5, 2]))) == pytest.approx(1)
    assert chance_corrected_agreement(torch.tensor([[9, 0], [0, 0]])) == 0
    assert chance_corrected_agreement(torch.zeros(3, 3).long()) == 0


def test_agreement_of_independent_labellings_is_chance() -> None:
    rows, columns = torch.tensor([2, 3, 5]), torch.tensor([4, 1, 5])
    assert chance_corrected_agreement(rows[:, None] * columns) == pytest.approx(0, abs=1e-12)


def test_agreement_needs_a_square() -> None:
    with pytest.raises(ValueError, match=r"counts: must be \(m, m\)"):
        chance_corrected_agreement(torch.zeros(2, 3))
