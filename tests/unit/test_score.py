import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from reco_ray.segmentation import concept_scores, label_map, language_attention


def whole_numbers(*shape: int, seed: int) -> torch.Tensor:
    """Of few values, so that concepts often tie and vectors are often zero."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


@st.composite
def inputs(draw) -> dict:
    def size(largest: int) -> int:
        return draw(st.integers(1, largest))

    b, m, c, d, seed = size(2), size(6), size(3), size(3), draw(st.integers(0, 10_000))
    halves = draw(st.sampled_from(["both", "references", "language"]))
    visual, language = halves != "language", halves != "references"
    return {
        "features": whole_numbers(b, c, size(5), size(5), seed=seed) if visual else None,
        "references": whole_numbers(m, c, seed=seed + 1) if visual else None,
        "language_features": whole_numbers(b, d, size(5), size(5), seed=seed + 2) if language else None,
        "text_embeddings": whole_numbers(m, d, seed=seed + 3) if language else None,
        "output_size": draw(st.none() | st.tuples(st.integers(1, 11), st.integers(1, 11))),
    }


@settings(max_examples=200, deadline=None)
@given(inputs())
def test_label_map_is_the_argmax_of_the_scores(arguments):
    scores = concept_scores(**arguments)
    labels, winning = label_map(**arguments)
    assert scores.isfinite().all()
    assert torch.equal(labels.long(), scores.argmax(dim=1))
    assert torch.equal(winning, scores.amax(dim=1))


@settings(max_examples=50, deadline=None)
@given(inputs(), st.randoms(use_true_random=False))
def test_a_subset_of_concepts_has_the_scores_it_has_among_all(arguments, random):
    scores = concept_scores(**arguments)
    subset = torch.tensor(random.sample(range(scores.shape[1]), random.randint(1, scores.shape[1])))
    torch.testing.assert_close(concept_scores(**arguments, concepts=subset), scores[:, subset])


def test_the_lowest_index_wins_a_tie():
    references = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    features = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    assert label_map(features, references, output_size=(9, 8)).labels.unique().tolist() == [1]


def test_scores_are_the_sigmoid_of_the_cosine_times_the_attention():
    features = torch.tensor([[3.0, 0.0], [0.0, -2.0]]).T.reshape(1, 2, 1, 2)
    references = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    cosines = torch.tensor([[1.0, 0.0], [0.0, -1.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(concept_scores(features, references), torch.sigmoid(cosines))
    torch.testing.assert_close(language_attention(features, references), torch.sigmoid(10 * cosines))
    both = concept_scores(features, references, language_features=features, text_embeddings=references)
    torch.testing.assert_close(both, torch.sigmoid(cosines) * torch.sigmoid(10 * cosines))


def test_the_language_features_are_resized_to_the_dense_features():
    visual, language = whole_numbers(1, 4, 6, 8, seed=0), whole_numbers(1, 3, 3, 4, seed=1)
    references, texts = whole_numbers(5, 4, seed=2), whole_numbers(5, 3, seed=3)
    scores = concept_scores(visual, references, language_features=language, text_embeddings=texts)
    attention = F.interpolate(language_attention(language, texts), (6, 8), mode="bilinear")
    torch.testing.assert_close(scores, concept_scores(visual, references) * attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zero_vectors_score_a_half(dtype):
    features, references = torch.zeros(1, 3, 2, 2, dtype=dtype), torch.zeros(2, 3, dtype=dtype)
    assert torch.equal(language_attention(features, references), torch.full((1, 2, 2, 2), 0.5))
    assert torch.equal(concept_scores(features, references), torch.full((1, 2, 2, 2), 0.5))


def test_autocast_changes_nothing():
    features, references = whole_numbers(1, 8, 4, 4, seed=0), whole_numbers(6, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = concept_scores(features, references, output_size=(9, 9))
    assert torch.equal(inside, concept_scores(features, references, output_size=(9, 9)))


@pytest.mark.parametrize(("concepts", "dtype"), [(255, torch.uint8), (256, torch.int16), (1000, torch.int16)])
def test_labels_are_as_small_as_the_number_of_concepts_allows(concepts, dtype):
    texts = torch.eye(concepts)
    labels, scores = label_map(texts[None, :, :, None], texts)
    assert labels.dtype == dtype
    assert labels[0, :, 0].tolist() == list(range(concepts))
    assert scores.dtype == torch.float32


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor made while it is active."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_label_map_never_holds_all_concepts_at_full_size():
    features, references = whole_numbers(1, 8, 4, 6, seed=0), whole_numbers(300, 8, seed=1)
    with LargestTensor() as largest:
        label_map(
            features,
            references,
            language_features=features,
            text_embeddings=references,
            output_size=(128, 192),
        )
    assert largest.elements == 128 * 192


def test_statistics_count_every_pixel_once():
    features = whole_numbers(2, 3, 5, 7, seed=0)
    result = label_map(features, whole_numbers(4, 3, seed=1), output_size=(10, 12))
    areas, means = result.statistics(4)
    for image in range(2):
        for concept in range(4):
            won = result.scores[image][result.labels[image] == concept]
            assert areas[image, concept] == len(won)
            assert means[image, concept] == pytest.approx(won.mean().item() if len(won) else 0)
    assert areas.sum(dim=1).tolist() == [120, 120]


GOOD = {
    "features": torch.ones(2, 3, 4, 4),
    "references": torch.ones(5, 3),
    "language_features": torch.ones(2, 6, 4, 4),
    "text_embeddings": torch.ones(5, 6),
    "output_size": (8, 8),
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"features": torch.ones(3, 4, 4)}, "features"),
        ({"features": torch.ones(2, 3, 0, 4)}, "features"),
        ({"features": None}, "features and references"),
        ({"references": torch.ones(5, 4)}, "references"),
        ({"references": torch.ones(5)}, "references"),
        ({"language_features": torch.ones(1, 6, 4, 4)}, "language_features"),
        ({"language_features": None}, "language_features and text_embeddings"),
        ({"text_embeddings": torch.ones(4, 6)}, "text_embeddings"),
        ({"text_embeddings": torch.ones(5, 7)}, "text_embeddings"),
        (dict.fromkeys(["features", "references", "language_features", "text_embeddings"]), "features"),
        ({"output_size": (0, 8)}, "output_size"),
        ({"output_size": (8,)}, "output_size"),
    ],
)
@pytest.mark.parametrize("function", [concept_scores, label_map])
def test_errors_name_the_argument(function, changes, named):
    with pytest.raises(ValueError, match=f"^{re.escape(named)}"):
        function(**(GOOD | changes))


def test_no_concept_is_an_error():
    with pytest.raises(ValueError, match="no concept"):
        label_map(torch.ones(1, 3, 4, 4), torch.ones(0, 3))
