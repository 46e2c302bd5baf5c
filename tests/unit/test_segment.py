"""Targets, background, prototypes and the pre-filter, on the real mini models and a real photograph."""

import pytest
import torch
import torch.nn.functional as F
from images import photograph

from reco_ray.config import load_settings
from reco_ray.cosegmentation import cosegment
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.prototypes import prototypes
from reco_ray.models.dense import DenseModels
from reco_ray.segmentation import concept_scores, label_map
from reco_ray.segmentation.segment import segment
from reco_ray.segmentation.target_set import BACKGROUND, Targets
from reco_ray.segmentation.targets import label_names, targets_of
from reco_ray.vocabulary import Concept, Vocabulary

# The paper's products of scores; those that are calibrated are in test_calibrated_scores.py.
SETTINGS = load_settings("mini", overrides=["segment.calibrate=0", "segment.refine=none"])


@pytest.fixture(scope="module")
def pixels(models: DenseModels) -> torch.Tensor:
    return torch.from_numpy(models.encoder.transform.fit(photograph(0, 300), 160, 32).copy())[None]


@pytest.fixture(scope="module")
def targets(models: DenseModels) -> Targets:
    channels = models.encoder.channels
    references = F.normalize(torch.randn(4, channels, generator=torch.Generator().manual_seed(0)), dim=1)
    texts = models.language.encode_texts(["dog", "grass", "car", "sky"])
    return Targets(references, texts, torch.tensor([1, 2, 3, BACKGROUND]), background=True)


def run(models: DenseModels, targets: Targets, pixels: torch.Tensor, **changes: object) -> torch.Tensor:
    settings = SETTINGS.segment.model_copy(update={"background_threshold": 0.0, **changes})
    return segment(models, targets, pixels, [(100, 90)], settings)[0].labels


def test_labels_are_those_of_the_winning_targets(
    models: DenseModels, targets: Targets, pixels: torch.Tensor
) -> None:
    encoded = models.encode(pixels)
    scores = concept_scores(
        encoded.visual,
        targets.references,
        language_features=encoded.language,
        text_embeddings=targets.text_embeddings,
        output_size=(100, 90),
    )
    torch.testing.assert_close(run(models, targets, pixels), targets.labels[scores[0].argmax(dim=0)])


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_low_scores_become_background(
    models: DenseModels, targets: Targets, pixels: torch.Tensor, refine: str
) -> None:
    plain = run(models, targets, pixels, refine=refine)
    some = run(models, targets, pixels, refine=refine, background_threshold=0.4)
    assert (some != plain).any()
    assert (some[some != plain] == BACKGROUND).all()
    assert (run(models, targets, pixels, refine=refine, background_threshold=1.0) == BACKGROUND).all()


def test_a_threshold_means_nothing_without_a_background(
    models: DenseModels, targets: Targets, pixels: torch.Tensor
) -> None:
    closed = Targets(targets.references, targets.text_embeddings, torch.arange(4))
    torch.testing.assert_close(
        run(models, closed, pixels, background_threshold=1.0), run(models, closed, pixels)
    )


def test_the_prefilter_keeps_the_likely_concepts_and_the_background(
    models: DenseModels, targets: Targets, pixels: torch.Tensor
) -> None:
    language = models.encode(pixels).language
    best = torch.einsum("bdhw,md->mhw", language, targets.text_embeddings[:3]).flatten(1).amax(dim=1).argmax()
    kept = run(models, targets, pixels, prefilter=1).unique().tolist()
    assert set(kept) <= {BACKGROUND, int(targets.labels[best])}
    torch.testing.assert_close(run(models, targets, pixels, prefilter=9), run(models, targets, pixels))


def test_prototypes_score_by_the_nearest() -> None:
    random = torch.Generator().manual_seed(1)
    features, references = torch.randn(1, 8, 5, 4, generator=random), torch.randn(3, 2, 8, generator=random)
    expected = torch.stack([concept_scores(features, references[:, p]) for p in range(2)]).amax(dim=0)
    torch.testing.assert_close(concept_scores(features, references), expected)
    labels, _ = label_map(features, references)
    torch.testing.assert_close(labels.long(), expected.argmax(dim=1))


def test_prototypes_separate_two_appearances() -> None:
    random = torch.Generator().manual_seed(2)
    looks = torch.eye(16)[:2]
    features = 0.05 * torch.randn(10, 16, 3, 3, generator=random)
    features[:, :, 1, 1] += looks[torch.arange(10) % 2]
    result = cosegment(features, torch.zeros(10, 3, 3).index_fill_(1, torch.tensor([1]), 1.0))
    centres = prototypes(result, 2)
    assert centres.shape == (2, 16)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(2))
    assert sorted((centres @ looks.T).argmax(dim=1).tolist()) == [0, 1]
    assert (centres @ looks.T).amax(dim=1).min() > 0.9
    assert prototypes(result, 1) is result.reference
    assert prototypes(result, 16).shape == (16, 16)  # more than seeds


def bank(names: tuple[str, ...], **fields: object) -> ReferenceBank:
    vocabulary = Vocabulary(concepts=tuple(Concept(name=name) for name in names), **fields)  # type: ignore[arg-type]
    rows, context = torch.arange(len(names) * 3.0).view(-1, 3), torch.arange(6.0).view(2, 3)
    return ReferenceBank("x", vocabulary, rows, rows, ["tree", "sky"], context, context, "model", "now")


def test_context_concepts_stand_for_the_background_unless_they_are_asked_for() -> None:
    settings = SETTINGS.segment.model_copy(update={"background": True})
    targets = targets_of(bank(("dog", "sky")), settings)
    assert targets.labels.tolist() == [1, 2, BACKGROUND]
    torch.testing.assert_close(targets.references[2], torch.tensor([0.0, 1.0, 2.0]))  # tree, not sky
    assert label_names(bank(("dog", "sky")), settings) == ["background", "dog", "sky"]


def test_a_single_concept_has_a_background_and_settings_have_the_last_word() -> None:
    assert label_names(bank(("hydrant",)), SETTINGS.segment) == ["background", "hydrant"]
    assert label_names(bank(("dog", "car")), SETTINGS.segment) == ["dog", "car"]
    assert label_names(bank(("dog", "car"), background=True), SETTINGS.segment)[0] == "background"
    off = SETTINGS.segment.model_copy(update={"background": False})
    assert targets_of(bank(("hydrant",)), off).labels.tolist() == [0]
