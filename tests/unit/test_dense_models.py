"""Both dense models behind one call: affinity, windows, and what the fingerprint tells apart."""

import pytest
import torch
import torch.nn.functional as F

from reco_ray.config import ModelSettings, load_settings
from reco_ray.errors import RecoError
from reco_ray.models import load_dense_encoder, load_language_image_model
from reco_ray.models.affinity import pool_by_affinity
from reco_ray.models.dense import DenseModels
from reco_ray.models.int8 import Int8Linear

NAMES = {"retrieval": "open_clip:ViT-S-32/random@clearclip", "encoder": "timm:test_vit/random@layer=0"}
PIXELS = torch.randint(0, 256, (2, 96, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def pair():
    options = {"precision": "fp32"}
    return load_language_image_model(NAMES["retrieval"], **options), load_dense_encoder(
        NAMES["encoder"], **options
    )


def models(pair, **changes):
    return DenseModels(*pair, ModelSettings(**NAMES, **changes))


def test_each_model_has_its_own_pixels_and_stride(pair):
    language, encoder = pair
    encoded = models(pair).encode(PIXELS)
    assert encoded.visual.shape == (2, encoder.channels, 6, 8)
    assert encoded.language.shape == (2, language.embedding_dim, 3, 4)
    expected = language.encode_dense(language.transform.normalize(PIXELS))
    torch.testing.assert_close(encoded.language, expected, rtol=0, atol=0)


@pytest.mark.parametrize("affinity", ["proxyclip", "dinoiser"])
def test_affinity_pools_the_language_features_at_the_encoders_resolution(pair, affinity):
    plain, pooled = models(pair).encode(PIXELS), models(pair, affinity=affinity).encode(PIXELS)
    torch.testing.assert_close(pooled.visual, plain.visual)
    assert pooled.language.shape[2:] == plain.visual.shape[2:]
    expected = F.normalize(pool_by_affinity(plain.language, plain.visual, affinity), dim=1)
    torch.testing.assert_close(pooled.language, expected)


def test_a_window_as_large_as_the_image_is_no_window(pair):
    plain, windowed = models(pair).encode(PIXELS), models(pair, window=128).encode(PIXELS)
    torch.testing.assert_close(windowed.visual, plain.visual)
    torch.testing.assert_close(windowed.language, plain.language)


def test_what_no_other_window_covers_is_that_windows_own(pair):
    language, encoder = pair
    encoded = models(pair, window=64, window_step=64).encode(PIXELS[:, :64])
    for left in (0, 64):
        part = PIXELS[:, :64, left : left + 64]
        torch.testing.assert_close(
            encoded.visual[..., left // 16 : left // 16 + 4],
            encoder.encode(encoder.transform.normalize(part)),
        )
        torch.testing.assert_close(
            encoded.language[..., left // 32 : left // 32 + 2],
            language.encode_dense(language.transform.normalize(part)),
        )


def test_windows_are_rounded_to_each_models_stride_and_features_stay_unit_vectors(pair):
    encoded = models(pair, window=72, window_step=40).encode(PIXELS)
    assert encoded.visual.shape[2:] == (6, 8)
    torch.testing.assert_close(encoded.language.norm(dim=1), torch.ones(2, 3, 4))


def test_the_fingerprint_covers_all_that_changes_features(pair):
    changes = [{}, {"affinity": "proxyclip"}, {"affinity": "dinoiser"}, {"window": 64}]
    changes += [{"window": 64, "window_step": 64}, {"affinity": "dinoiser", "window": 64}]
    fingerprints = {models(pair, **change).fingerprint for change in changes}
    assert len(fingerprints) == len(changes)
    assert models(pair, window=64).fingerprint == models(pair, window=64, window_step=32).fingerprint


@pytest.mark.parametrize(
    "changes", [["models.window_step=64"], ["models.window=64", "models.window_step=128"]]
)
def test_windows_that_leave_gaps_are_refused(changes):
    with pytest.raises(RecoError, match="window_step must not exceed window"):
        load_settings("mini", overrides=changes)


def test_eight_bits_are_for_whole_images_only():
    language = DenseModels.load(ModelSettings(**NAMES, precision="int8")).language
    assert not any(isinstance(layer, Int8Linear) for layer in language.module.modules())


def test_settings_name_each_model_once():
    assert ModelSettings(**NAMES).specs == ["open_clip:ViT-S-32/random", "timm:test_vit/random"]
    assert (
        ModelSettings(**NAMES, language="open_clip:ViT-S-32/random@value").specs
        == ModelSettings(**NAMES).specs
    )
