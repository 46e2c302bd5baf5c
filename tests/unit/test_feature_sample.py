"""The sample of features that scores are calibrated over, as stages, server and trials of a sweep take it."""

import pyarrow as pa
import pytest
import torch
from images import write_photographs

from reco_ray.config import Settings, load_settings
from reco_ray.corpus.load import whole_image_loader
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.sample import SHARD, join_samples, sample_loaded
from reco_ray.distributed.parts import cut
from reco_ray.errors import UnreadableError
from reco_ray.models.dense import DenseFeatures, DenseModels
from reco_ray.models.feature_sample import LOCATIONS, from_bytes
from reco_ray.models.prompts import encode_prompts
from reco_ray.sweeps.encoded_images import augmented_view, cached_models, encode, image_view
from reco_ray.sweeps.tally import Tally, figures, tally
from reco_ray.sweeps.trial_references import TrialBank
from reco_ray.sweeps.trial_sample import images_of_sample, take_sample
from reco_ray.vocabulary import parse_concepts

NAMES = ("dog", "car", "cup")


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings("mini", overrides=["segment.image_size=96", "segment.calibrate=4"])


@pytest.fixture(scope="module")
def models(settings: Settings) -> DenseModels:
    return cached_models(image_view(settings).models, settings.seed, "cpu")


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Ten photographs, more than one part; the third cannot be read."""
    files = write_photographs(tmp_path_factory.mktemp("photographs"), 10)
    files[2].write_bytes(b"no picture")
    return [str(file) for file in files]


@pytest.fixture(scope="module")
def sample(settings: Settings, models: DenseModels, uris: list[str]) -> DenseFeatures:
    load = whole_image_loader(models.encoder.transform, models.encoder.stride, settings.segment)
    rows = pa.table({"uri": uris})
    parts = [sample_loaded(models, load(shard), "cpu") for shard in cut(rows, SHARD).values()]
    return from_bytes(join_samples([part for part in parts if part is not None], rows))


def test_images_that_cannot_be_read_are_passed_over(sample: DenseFeatures, models: DenseModels) -> None:
    assert sample.visual.shape == (9, models.encoder.channels, 1, LOCATIONS)
    assert sample.image is not None
    assert sample.image.shape[0] == 9


def test_without_a_readable_image_there_is_one_line(
    settings: Settings, models: DenseModels, uris: list[str]
) -> None:
    load = whole_image_loader(models.encoder.transform, models.encoder.stride, settings.segment)
    rows = pa.table({"uri": uris[2:3]})
    assert sample_loaded(models, load(rows), "cpu") is None
    with pytest.raises(UnreadableError, match=r"02.*: none of 1 images can be used"):
        join_samples([], rows)
    view = image_view(settings)
    with pytest.raises(UnreadableError, match=r"02.*: none of 1 images can be used"):
        take_sample(view, "cpu", *encode(view, uris[2:3], "cpu"))


def test_a_trial_takes_the_sample_that_the_stages_take(
    settings: Settings, sample: DenseFeatures, uris: list[str]
) -> None:
    view = image_view(settings)
    found = take_sample(view, "cpu", *encode(view, uris, "cpu"))
    for name in ("visual", "language", "logits", "image"):
        torch.testing.assert_close(getattr(found, name), getattr(sample, name), atol=0.02, rtol=0.01)
    assert found.classes is not None
    assert sample.classes is not None
    assert torch.equal(found.classes, sample.classes)


def test_a_trial_calibrates_over_its_own_images_where_they_are_enough() -> None:
    images, corpus = [f"image {number}" for number in range(5)], ["a", "b", "c"]
    assert images_of_sample(images, corpus, 4) == images[:4]
    assert images_of_sample(images, corpus, 6) == corpus


def test_trials_are_scored_by_calibrated_probabilities(
    settings: Settings, models: DenseModels, sample: DenseFeatures, uris: list[str]
) -> None:
    texts = encode_prompts(models.language, [[name] for name in NAMES], "plain").cpu()
    references = torch.nn.functional.normalize(sample.visual[:3, :, 0, 8], dim=1)
    empty = torch.empty(0, models.encoder.channels), torch.empty(0, texts.shape[1])
    vocabulary = parse_concepts(", ".join(NAMES))
    bank = TrialBank(ReferenceBank("", vocabulary, references, texts, [], *empty, "", ""), 0.5, 0.5)
    some = uris[:5]
    encoded = [*encode(image_view(settings), some, "cpu"), *encode(augmented_view(settings), some, "cpu")]

    def counted(calibrate: int) -> Tally:
        options = settings.segment.model_copy(update={"calibrate": calibrate})
        changed = settings.model_copy(update={"segment": options})
        return tally(changed, bank, None, True, sample if calibrate else None, "cpu", *encoded)

    calibrated, products = counted(4), counted(0)
    assert calibrated.images == products.images == 4
    measured = ["prediction_entropy", "augmentation_agreement"]
    found, of_products = figures(bank, calibrated, measured), figures(bank, products, measured)
    assert 0.05 < found["prediction_entropy"] < of_products["prediction_entropy"]
    assert calibrated.agreement is not None
    assert (calibrated.agreement.sum(0) > 0).sum() >= 2
