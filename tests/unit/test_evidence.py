"""Evidence of concepts: worked out by formula, made comparable by a calibration, the same whatever else is scored."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reco_ray.models.dense import DenseFeatures
from reco_ray.models.feature_sample import LOCATIONS, from_bytes, sample_features, to_bytes
from reco_ray.segmentation.calibration import ScoreCalibration
from reco_ray.segmentation.evidence import (
    CLASS_TEMPERATURE,
    CONCEPT_TEMPERATURE,
    LANGUAGE_WEIGHT,
    LEAST_DEVIATION,
    REFERENCE_WEIGHT,
    calibrate,
    calibrated_logits,
    class_weights,
    evidence_maps,
    mixture_evidence,
)
from reco_ray.segmentation.target_set import BACKGROUND, Targets

CHANNELS, TEXT, CLASSES = 12, 8, 20


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(
    images: int = 6, classifier: bool = True, seed: int = 0, size: tuple[int, int] = (5, 7)
) -> DenseFeatures:
    language = F.normalize(random(images, TEXT, *size, seed=seed + 1), dim=1)
    classes = F.normalize(random(CLASSES, TEXT, seed=99), dim=1)
    logits = 3 * random(images, CLASSES, *size, seed=seed + 2)
    visual = random(images, CHANNELS, *size, seed=seed)
    return DenseFeatures(visual, language, logits if classifier else None, classes if classifier else None)


def targets(count: int = 4, background: bool = False, seed: int = 5) -> Targets:
    """With a background, the last is a target of it."""
    labels = torch.arange(count)
    if background:
        labels = torch.cat([labels[1:], labels.new_tensor([BACKGROUND])])
    texts = F.normalize(random(count, TEXT, seed=seed + 1), dim=1)
    return Targets(random(count, CHANNELS, seed=seed), texts, labels, background)


def calibrated(found: Targets, sample: DenseFeatures) -> Targets:
    return replace(found, calibration=calibrate(sample, found))


def test_class_weights_are_products_of_two_softmaxes() -> None:
    classes, texts = F.normalize(random(CLASSES, TEXT), dim=1), F.normalize(random(3, TEXT, seed=1), dim=1)
    weights = class_weights(classes, texts)
    torch.testing.assert_close(weights.sum(0), torch.ones(3))
    cosines = (classes @ texts.T).double()
    expected = torch.exp(cosines / CLASS_TEMPERATURE) * torch.exp(cosines / CONCEPT_TEMPERATURE)
    expected /= torch.exp(cosines / CONCEPT_TEMPERATURE).sum(1, keepdim=True)
    torch.testing.assert_close(weights.double(), expected / expected.sum(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_class_weights_sum_to_one_for_any_number_of_concepts(count: int) -> None:
    texts = F.normalize(random(count, TEXT, seed=3), dim=1)
    weights = class_weights(F.normalize(random(CLASSES, TEXT), dim=1), texts)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(0), torch.ones(count))


def test_class_weights_of_a_concept_that_no_class_resembles_and_of_two_alike() -> None:
    classes = torch.eye(TEXT)[:1].expand(CLASSES, -1)
    texts = torch.stack([torch.eye(TEXT)[0], -torch.eye(TEXT)[0], torch.eye(TEXT)[0]])
    weights = class_weights(classes, texts)
    torch.testing.assert_close(weights, torch.full((CLASSES, 3), 1 / CLASSES))


def test_mixture_evidence_by_the_formula() -> None:
    logits, weights = 4 * random(2, CLASSES, 3, 5), random(CLASSES, 4, seed=1).softmax(0)
    direct = torch.einsum("bkhw,km->bmhw", logits.double().exp(), weights.double())
    likelihood = mixture_evidence(logits, weights, normalised=False)
    torch.testing.assert_close(likelihood.double(), direct.log(), atol=1e-4, rtol=1e-5)
    posterior = mixture_evidence(logits, weights, normalised=True)
    shares = direct / logits.double().exp().sum(1, keepdim=True)
    torch.testing.assert_close(posterior.double(), shares.log(), atol=1e-4, rtol=1e-5)


def test_strength_counts_with_a_background_only() -> None:
    """Logits that are higher by a constant say that there is more of anything; a posterior does not know it."""
    encoded, found = features(), targets(background=True)
    stronger = replace(encoded, logits=encoded.logits + 5)  # type: ignore[operator]
    torch.testing.assert_close(evidence_maps(stronger, found)[1], evidence_maps(encoded, found)[1] + 5)
    closed = replace(found, background=False)
    torch.testing.assert_close(evidence_maps(stronger, closed)[1], evidence_maps(encoded, closed)[1])
    torch.testing.assert_close(evidence_maps(stronger, found)[2], evidence_maps(encoded, found)[2])


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_logits_are_no_overflow(shift: float) -> None:
    logits, weights = random(1, CLASSES, 2, 2) + shift, random(CLASSES, 3, seed=1).softmax(0)
    for normalised in (False, True):
        assert mixture_evidence(logits, weights, normalised=normalised).isfinite().all()


def test_models_without_classes_have_cosines() -> None:
    encoded, found = features(classifier=False), targets(background=True)
    reference, language, image = evidence_maps(encoded, found)
    units = F.normalize(encoded.visual, dim=1), F.normalize(found.references, dim=1)
    torch.testing.assert_close(reference, torch.einsum("bchw,mc->bmhw", *units))
    torch.testing.assert_close(
        language, torch.einsum("bdhw,md->bmhw", encoded.language, found.text_embeddings)
    )
    torch.testing.assert_close(image, language.mean((2, 3), keepdim=True))
    logits = calibrated_logits([reference, language, image], calibrate(encoded, found))
    assert logits.isfinite().all()


@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_calibration_is_mean_and_deviation_of_the_evidence(classifier: bool, background: bool) -> None:
    encoded, found = features(classifier=classifier), targets(background=background)
    made, maps = calibrate(encoded, found), evidence_maps(encoded, found)
    for factor, each in enumerate(maps):
        torch.testing.assert_close(made.means[factor], each.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
        deviation = each.transpose(0, 1).flatten(1).std(1, correction=0)
        torch.testing.assert_close(made.deviations[factor], deviation, atol=1e-4, rtol=1e-4)
    between = maps[0].mean((2, 3)).var(0, correction=0)
    within = maps[0].flatten(2).var(2, correction=0).mean(0)
    assert made.image_weight == pytest.approx(float((between / (between + within)).mean()), abs=1e-4)
    total = calibrated_logits(maps, made)
    weights = (REFERENCE_WEIGHT, LANGUAGE_WEIGHT, made.image_weight)
    expected = sum(
        weight * (each - each.mean((0, 2, 3), keepdim=True)) / made.deviations[factor].view(1, -1, 1, 1)
        for factor, (each, weight) in enumerate(zip(maps, weights, strict=True))
    )
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
    if background:
        assert made.least < made.present
    else:
        assert made.least == made.present == -torch.inf


def test_evidence_that_is_higher_everywhere_changes_nothing() -> None:
    """Neither does evidence that varies more: every concept's is standardised."""
    encoded, found = features(), targets()
    maps, made = evidence_maps(encoded, found), calibrate(encoded, found)
    for factor in range(3):
        changed, means, deviations = list(maps), made.means.clone(), made.deviations.clone()
        changed[factor] = maps[factor].clone()
        changed[factor][:, 1] = 3 * maps[factor][:, 1] + 2
        means[factor, 1], deviations[factor, 1] = 3 * means[factor, 1] + 2, 3 * deviations[factor, 1]
        other = replace(made, means=means, deviations=deviations)
        torch.testing.assert_close(
            calibrated_logits(changed, other), calibrated_logits(maps, made), atol=1e-4, rtol=1e-4
        )


def test_use_takes_some_of_the_evidence() -> None:
    encoded, found = features(), targets()
    maps, made = evidence_maps(encoded, found), calibrate(encoded, found)
    parts = calibrated_logits(maps, made, "references") + calibrated_logits(maps, made, "language")
    torch.testing.assert_close(parts, calibrated_logits(maps, made), atol=1e-5, rtol=1e-5)
    without_looks = [torch.full_like(maps[0], torch.nan), *maps[1:]]
    assert calibrated_logits(without_looks, made, "language").isfinite().all()


def test_evidence_at_two_resolutions_is_added_at_the_finer() -> None:
    fine, coarse = features(size=(10, 14)), features(size=(5, 7))
    encoded, found = replace(fine, logits=coarse.logits, language=coarse.language), targets()
    maps = evidence_maps(encoded, found)
    assert [tuple(each.shape[2:]) for each in maps] == [(10, 14), (5, 7), (1, 1)]
    logits = calibrated_logits(maps, calibrate(encoded, found))
    assert logits.shape == (6, 4, 10, 14)
    assert logits.isfinite().all()


def test_several_prototypes_score_by_the_nearest() -> None:
    encoded, found = features(), targets()
    prototypes = torch.stack([found.references, random(4, CHANNELS, seed=8)], 1)
    both = evidence_maps(encoded, replace(found, references=prototypes))[0]
    each = [evidence_maps(encoded, replace(found, references=prototypes[:, p]))[0] for p in range(2)]
    torch.testing.assert_close(both, torch.maximum(*each))


def test_an_image_scores_the_same_alone_and_beside_others() -> None:
    encoded = features()
    found = calibrated(targets(background=True), features(seed=30))
    assert found.calibration is not None
    together = calibrated_logits(evidence_maps(encoded, found), found.calibration)
    for number in range(6):
        alone = calibrated_logits(evidence_maps(encoded.select(number), found), found.calibration)
        torch.testing.assert_close(alone[0], together[number], atol=1e-5, rtol=1e-5)


def test_selected_targets_keep_their_calibration() -> None:
    found = calibrated(targets(5, background=True), features())
    some = found.select(torch.tensor([3, 1]))
    assert found.calibration is not None
    assert some.calibration is not None
    assert torch.equal(some.calibration.means, found.calibration.means[:, [3, 1]])
    assert torch.equal(some.calibration.deviations, found.calibration.deviations[:, [3, 1]])
    assert (some.calibration.least, some.calibration.present) == (
        found.calibration.least,
        found.calibration.present,
    )
    assert isinstance(some.to("cpu").calibration, ScoreCalibration)


@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("images", [1, 2, 15])
def test_few_images_calibrate(images: int, background: bool, classifier: bool) -> None:
    made = calibrate(features(images, classifier), targets(background=background))
    assert made.means.isfinite().all()
    assert (made.deviations >= LEAST_DEVIATION).all()
    assert 0 <= made.image_weight <= 1
    if images == 1:
        assert made.image_weight == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("classifier", [True, False])
def test_images_without_any_deviation_calibrate(classifier: bool) -> None:
    """Sixteen blank pages: every location of every image is the same."""
    one = features(1, classifier, size=(1, 1))

    def everywhere(maps: torch.Tensor) -> torch.Tensor:
        return maps.expand(16, -1, 4, 4)

    blank = replace(
        one,
        visual=everywhere(one.visual),
        language=everywhere(one.language),
        logits=None if one.logits is None else everywhere(one.logits),
    )
    found = calibrated(targets(background=True), blank)
    assert found.calibration is not None
    assert (found.calibration.deviations == LEAST_DEVIATION).all()
    assert found.calibration.image_weight == pytest.approx(0, abs=1e-4)
    for encoded in (blank, features(classifier=classifier)):
        assert calibrated_logits(evidence_maps(encoded, found), found.calibration).isfinite().all()


def test_the_image_counts_where_images_differ_more_than_their_parts() -> None:
    """As photographs of one thing each do, and frames of a street do not."""
    single, scenes = features(), features(seed=50)
    looks = random(6, CHANNELS, 1, 1, seed=9)
    of_single = calibrate(replace(single, visual=looks + 0.2 * single.visual), targets()).image_weight
    of_scenes = calibrate(replace(scenes, visual=looks[:1] + scenes.visual), targets()).image_weight
    assert of_single > 0.6
    assert of_scenes < 0.2


def test_a_sample_is_of_every_image_and_survives_its_file() -> None:
    encoded = features(9)
    parts = [sample_features(encoded.select(number), number) for number in range(9)]
    for number, part in enumerate(parts):
        assert part.visual.shape == (1, CHANNELS, 1, LOCATIONS)
        assert part.logits is not None
        assert part.image is not None
        # Every column of the sample is a location of the image.
        distances = torch.cdist(part.logits[0, :, 0].T, encoded.logits[number].flatten(1).T)  # type: ignore[index]
        assert (distances.amin(1) < 0.1).all()
        assert len(distances.argmin(1).unique()) >= LOCATIONS / 2
        torch.testing.assert_close(part.image[0], encoded.logits[number].mean((1, 2)))  # type: ignore[index]
    read = from_bytes(to_bytes(parts))
    for name in ("visual", "language", "logits", "image"):
        expected = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(getattr(read, name), expected, atol=2e-2, rtol=2e-3)
    assert torch.equal(read.classes, encoded.classes)  # type: ignore[arg-type]
    assert to_bytes(parts) == to_bytes(parts)
    without = from_bytes(to_bytes([sample_features(features(1, classifier=False), 0)]))
    assert without.logits is without.classes is None


def test_images_of_one_scene_are_sampled_in_different_places() -> None:
    """As many of the rows and columns of a grid as it has, over eight images."""
    rows, columns = 14, 19
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))[None].float()
    encoded = DenseFeatures(torch.ones(1, 1, rows, columns), grid)
    taken = torch.cat([sample_features(encoded, number).language[0, :, 0] for number in range(8)], dim=1)
    assert len(taken.T.unique(dim=0)) > 100
    for found, count in zip(taken, (rows, columns), strict=True):
        places = torch.bincount(found.long(), minlength=count)
        assert places.min() >= 0.5 * 8 * LOCATIONS / count
        assert places.max() <= 1.6 * 8 * LOCATIONS / count


def test_a_sample_holds_features_of_any_scale_and_of_the_smallest_image() -> None:
    encoded = features(1, size=(1, 2))
    for scale in (1e-6, 1.0, 1e8):
        sample = from_bytes(to_bytes([sample_features(replace(encoded, visual=scale * encoded.visual), 3)]))
        assert sample.visual.shape == (1, CHANNELS, 1, LOCATIONS)
        torch.testing.assert_close(sample.visual.norm(dim=1), torch.ones(1, 1, LOCATIONS), atol=1e-2, rtol=0)
        assert calibrate(sample, targets()).means.isfinite().all()
    blank = sample_features(replace(encoded, visual=torch.zeros_like(encoded.visual)), 0)
    assert from_bytes(to_bytes([blank])).visual.isfinite().all()
