"""Scores against those of the released ReCo code."""

import numpy as np
import pytest
import torch
from shared_data import shared_path

from reco_ray.segmentation import concept_scores, label_map


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(shared_path("golden", "reco.npz")) as arrays:
        names = [name for name in arrays.files if name.startswith("predict.")]
        return {name.removeprefix("predict."): torch.from_numpy(arrays[name]) for name in names}


@pytest.mark.parametrize("with_language", [True, False])
def test_scores_and_labels_are_those_of_the_released_code(golden, with_language):
    expected = golden["scores" if with_language else "scores_without_language"]
    language = {
        "language_features": golden["dense_language_features"] if with_language else None,
        "text_embeddings": golden["text_embeddings"] if with_language else None,
    }
    size = tuple(expected.shape[2:])
    scores = concept_scores(golden["features"], golden["references"], output_size=size, **language)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)

    labels, winning = label_map(golden["features"], golden["references"], output_size=size, **language)
    assert torch.equal(labels.long(), expected.argmax(dim=1))
    torch.testing.assert_close(winning, expected.amax(dim=1), rtol=0, atol=1e-5)
