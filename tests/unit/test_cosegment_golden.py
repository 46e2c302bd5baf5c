"""Co-segmentation against the references of the released ReCo code, and of the same code made exact."""

from typing import get_args

import numpy as np
import pytest
import torch
from shared_data import shared_path

from reco_ray.cosegmentation import context_weights, cosegment
from reco_ray.cosegmentation.cosegment import Pairing, Reduction

CASES = ["small", "single"]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(shared_path("golden", "reco.npz")) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize("reduction", get_args(Reduction))
@pytest.mark.parametrize("pairing", get_args(Pairing))
@pytest.mark.parametrize("case", CASES)
def test_references_and_seeds_are_those_of_the_released_code(golden, case, pairing, reduction):
    features, weights = golden[f"{case}.features"], golden[f"{case}.combined_weights"]
    result = cosegment(features, weights, reduction=reduction, pairing=pairing)
    expected = f"{case}.{pairing}"
    torch.testing.assert_close(
        result.reference, golden[f"{expected}.reference_{reduction}"], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(result.seed_features, golden[f"{expected}.seed_features"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_context_weights_are_those_of_the_released_code(golden, case):
    weights = context_weights(golden[f"{case}.features"], golden[f"{case}.context_references"])
    # The file's `context_weights` are sigmoid(cos); `combined_weights` were multiplied with one minus them.
    torch.testing.assert_close(1 - weights, golden[f"{case}.context_weights"], rtol=0, atol=1e-5)
    combined = golden[f"{case}.weights"] * weights.prod(dim=1)
    torch.testing.assert_close(combined, golden[f"{case}.combined_weights"], rtol=0, atol=1e-5)
