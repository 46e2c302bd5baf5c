"""Masks of calibrated scores, on the models of `mini` and real photographs: also of odd corpora, images and lists."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from images import photograph
from PIL import Image

from reco_ray.config import SegmentSettings, load_settings
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.errors import UnfinishedError
from reco_ray.models.dense import DenseFeatures, DenseModels
from reco_ray.models.feature_sample import from_bytes, sample_features, to_bytes
from reco_ray.segmentation.calibration import ScoreCalibration
from reco_ray.segmentation.segment import SegmentedImage, label_logits, segment
from reco_ray.segmentation.target_set import BACKGROUND, Targets
from reco_ray.segmentation.targets import targets_of
from reco_ray.vocabulary import Concept, Vocabulary

SETTINGS = load_settings("mini").segment
NAMES = ("dog", "cat", "strawberry", "beetle")
SHOWN = {"dog": 0, "cat": 21, "strawberry": 4, "beetle": 19}
CONTEXT = ("tree", "sky")


def sample_of(models: DenseModels, photos: Iterable[Image.Image]) -> DenseFeatures:
    parts = [sample_features(models.encode(fitted(photo)), number) for number, photo in enumerate(photos)]
    return from_bytes(to_bytes(parts))


def fitted(photo: Image.Image, side: int = 160) -> torch.Tensor:
    """uint8 (1, H, W, 3), both sides multiples of the stride."""
    width, height = photo.size
    scale = side / min(width, height)
    size = [max(32, round(each * scale / 32) * 32) for each in (width, height)]
    return torch.from_numpy(np.array(photo.convert("RGB").resize(size)))[None]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sample(models: DenseModels) -> DenseFeatures:
    return sample_of(models, [photograph(number, 300) for number in range(28)])


def bank(
    models: DenseModels, sample: DenseFeatures | None, names: tuple[str, ...] = NAMES, **fields: bool
) -> ReferenceBank:
    """References are the mean features of the photograph that shows a concept; else any direction."""
    random = torch.Generator().manual_seed(0)
    context = F.normalize(torch.randn(len(CONTEXT), models.encoder.channels, generator=random), dim=1)
    rows = F.normalize(torch.randn(len(names), models.encoder.channels, generator=random), dim=1)
    for row, name in enumerate(names):
        if name in SHOWN:
            visual = models.encode(fitted(photograph(SHOWN[name], 300))).visual[0]
            rows[row] = F.normalize(visual.flatten(1).mean(1), dim=0)
    vocabulary = Vocabulary(concepts=tuple(Concept(name=name) for name in names), **fields)
    texts, words = (models.language.encode_texts(list(each)) for each in (names, CONTEXT))
    return ReferenceBank("x", vocabulary, rows, texts, list(CONTEXT), context, words, "m", "now", "", sample)


def masks(
    models: DenseModels, targets: Targets, photo: Image.Image, **changes: object
) -> tuple[SegmentedImage, set[int]]:
    settings = SETTINGS.model_copy(update=changes)
    width, height = photo.size
    found = segment(models, targets, fitted(photo), [(height, width)], settings)[0]
    assert found.labels.shape == found.scores.shape == (height, width)
    assert found.scores.isfinite().all()
    assert ((found.scores >= 0) & (found.scores <= 1 + 1e-5)).all()
    labels = set(found.labels.unique().tolist())
    assert labels <= set(targets.labels.tolist()) | ({BACKGROUND} if targets.background else set())
    return found, labels


@pytest.mark.parametrize("refine", ["none", "pamr", "superpixels", "crf"])
@pytest.mark.parametrize("background", [True, False])
def test_photographs_are_labelled_with_what_they_show(
    models: DenseModels, sample: DenseFeatures, background: bool, refine: str
) -> None:
    targets = targets_of(bank(models, sample, background=background), SETTINGS)
    assert targets.background == background
    for number, name in enumerate(NAMES):
        found, labels = masks(models, targets, photograph(SHOWN[name], 120), refine=refine)
        areas = torch.bincount(found.labels.flatten(), minlength=len(NAMES) + 1)
        if background:
            assert labels == {BACKGROUND, number + 1}, name
        else:
            assert int(areas.argmax()) == number, name


@pytest.mark.parametrize("use", ["references", "language"])
def test_either_evidence_alone_makes_masks(models: DenseModels, sample: DenseFeatures, use: str) -> None:
    settings = SETTINGS.model_copy(update={"use": use})
    targets = targets_of(bank(models, sample, background=True), settings)
    _, labels = masks(models, targets, photograph(21, 120), use=use)
    assert 2 in labels


def test_masks_do_not_depend_on_the_images_beside(models: DenseModels, sample: DenseFeatures) -> None:
    targets = targets_of(bank(models, sample, background=True), SETTINGS)
    batch = torch.cat([fitted(photograph(number, 300).resize((192, 160))) for number in (21, 0, 4)])
    together = segment(models, targets, batch, [(100, 120)] * 3, SETTINGS)
    for number in range(3):
        alone = segment(models, targets, batch[number : number + 1], [(100, 120)], SETTINGS)[0]
        assert (alone.labels == together[number].labels).float().mean() > 0.995  # sums are rounded otherwise
        torch.testing.assert_close(alone.scores, together[number].scores, atol=0.02, rtol=0)


def test_the_threshold_and_the_prefilter(models: DenseModels, sample: DenseFeatures) -> None:
    targets = targets_of(bank(models, sample, background=True), SETTINGS)
    plain, _ = masks(models, targets, photograph(21, 120))
    some, _ = masks(models, targets, photograph(21, 120), background_threshold=0.8)
    changed = some.labels != plain.labels
    assert changed.any()
    assert (some.labels[changed] == BACKGROUND).all()
    assert (plain.scores[changed] < 0.8).all()
    _, nothing = masks(models, targets, photograph(21, 120), background_threshold=1.0)
    assert nothing == {BACKGROUND}
    for keep in (1, 2, 9):
        _, labels = masks(models, targets, photograph(21, 120), prefilter=keep)
        assert labels == {BACKGROUND, 2}
    closed = targets_of(bank(models, sample), SETTINGS)
    one, labels = masks(models, closed, photograph(21, 120), prefilter=1, background_threshold=1.0)
    assert len(labels) == 1  # no background: neither does the threshold count
    torch.testing.assert_close(one.scores, torch.ones_like(one.scores))


def by_hand(background: bool, present: float = 2.0) -> Targets:
    """Targets of labels 1, 2 and the background, calibrated, for logits made by hand."""
    labels = torch.tensor([1, 2, BACKGROUND])
    made = ScoreCalibration(torch.zeros(3, 3), torch.ones(3, 3), 0.3, least=0.0, present=present)
    return Targets(torch.zeros(3, 2), torch.zeros(3, 2), labels, background, made)


def test_a_concept_that_is_nowhere_sure_is_dropped() -> None:
    logits = torch.full((3, 4, 8), -3.0)
    logits[0, :, :3], logits[1, :, 6:] = 6.0, 4.0
    pixels = torch.zeros(4, 8, 3, dtype=torch.uint8)
    settings = SegmentSettings(refine="none")

    def labels(present: float) -> torch.Tensor:
        return label_logits(logits, by_hand(True, present), None, pixels, (4, 8), settings).labels

    assert labels(2.0)[0].tolist() == [1, 1, 1, 0, 0, 0, 2, 2]
    assert labels(5.0)[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert labels(7.0).unique().tolist() == [BACKGROUND]


def test_probabilities_by_hand() -> None:
    logits = torch.tensor([2.0, 1.0, -1.0]).view(3, 1, 1).expand(-1, 4, 8).contiguous()
    pixels = torch.zeros(4, 8, 3, dtype=torch.uint8)
    found = label_logits(logits, by_hand(False), None, pixels, (4, 8), SegmentSettings(refine="none"))
    assert found.labels.unique().tolist() == [1]
    # Only targets among the best two somewhere compete.
    torch.testing.assert_close(
        found.scores, torch.full((4, 8), float(torch.tensor([2.0, 1.0]).softmax(0)[0]))
    )


@pytest.mark.parametrize("count", [1, 3, 15])
def test_a_corpus_of_few_images(models: DenseModels, count: int) -> None:
    few = sample_of(models, [photograph(number, 300) for number in range(count)])
    for background in (True, False):
        targets = targets_of(bank(models, few, background=background), SETTINGS)
        for number in (0, 21):
            masks(models, targets, photograph(number, 120))


@pytest.mark.parametrize("kind", ["one photograph", "blank"])
def test_a_corpus_of_identical_images(models: DenseModels, kind: str) -> None:
    photo = photograph(3, 300) if kind == "one photograph" else Image.new("RGB", (200, 160), "white")
    same = sample_of(models, [photo] * 16)
    targets = targets_of(bank(models, same, background=True), SETTINGS)
    assert targets.calibration is not None
    assert targets.calibration.image_weight < 0.1
    for shown in (photo.resize((120, 100)), photograph(21, 120)):
        masks(models, targets, shown)


@pytest.mark.parametrize("background", [True, False, None])
def test_one_concept_alone(models: DenseModels, sample: DenseFeatures, background: bool | None) -> None:
    settings = SETTINGS.model_copy(update={"background": background})
    targets = targets_of(bank(models, sample, ("cat",)), settings)
    _, labels = masks(models, targets, photograph(21, 120))
    assert labels == ({0} if background is False else {BACKGROUND, 1})
    found, _ = masks(models, targets, photograph(26, 120))  # a building
    if background is not False:
        assert (found.labels == 1).float().mean() < 0.1


def test_a_concept_that_occurs_nowhere(models: DenseModels, sample: DenseFeatures) -> None:
    targets = targets_of(bank(models, sample, (*NAMES, "submarine"), background=True), SETTINGS)
    for name, number in SHOWN.items():
        _, labels = masks(models, targets, photograph(number, 120))
        assert 5 not in labels, name


def test_a_thousand_concepts(models: DenseModels, sample: DenseFeatures) -> None:
    many = bank(models, sample, background=True)
    random = torch.Generator().manual_seed(1)
    rows = torch.cat([many.references, torch.randn(996, many.references.shape[1], generator=random)])
    texts = torch.cat([many.text_embeddings, torch.randn(996, 384, generator=random)])
    names = [*NAMES, *(f"thing {number}" for number in range(996))]
    vocabulary = Vocabulary(concepts=tuple(Concept(name=name) for name in names), background=True)
    found = replace(
        many,
        vocabulary=vocabulary,
        references=F.normalize(rows, dim=1),
        text_embeddings=F.normalize(texts, dim=1),
    )
    targets = targets_of(found, SETTINGS)
    assert len(targets.labels) == 1002
    _, labels = masks(models, targets, photograph(21, 120))
    assert 2 in labels


SHAPES = {
    "greyscale": photograph(21, 120).convert("L"),
    "64 px": photograph(21, 1000).resize((64, 64)),
    "panorama": photograph(26, 1000).resize((2400, 320)),
    "tower": photograph(26, 1000).resize((320, 2400)),
    "one colour": Image.new("RGB", (96, 64), "red"),
    "a pixel": Image.new("RGB", (1, 1), "blue"),
}


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_all_shapes(
    models: DenseModels, sample: DenseFeatures, shape: str, background: bool
) -> None:
    targets = targets_of(bank(models, sample, background=background), SETTINGS)
    masks(models, targets, SHAPES[shape])


def test_an_image_in_which_nothing_is_found_is_all_background(
    models: DenseModels, sample: DenseFeatures
) -> None:
    targets = targets_of(bank(models, sample, background=True), SETTINGS)
    _, labels = masks(models, targets, Image.new("RGB", (128, 96), "grey"))
    assert labels == {BACKGROUND}


def test_references_without_a_sample_are_one_line(models: DenseModels) -> None:
    with pytest.raises(UnfinishedError, match=r"^x: made without segment.calibrate.*segment.calibrate=0$"):
        targets_of(bank(models, None), SETTINGS)
    assert targets_of(bank(models, None), SETTINGS.model_copy(update={"calibrate": 0})).calibration is None
