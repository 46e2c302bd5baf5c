"""Sliding windows: as large as the image they change nothing, smaller ones average their scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from images import photograph

from reco_ray.config import load_settings
from reco_ray.models.dense import DenseModels
from reco_ray.models.feature_sample import from_bytes, sample_features, to_bytes
from reco_ray.segmentation.evidence import calibrate
from reco_ray.segmentation.score import concept_scores
from reco_ray.segmentation.segment import segment
from reco_ray.segmentation.target_set import BACKGROUND, Targets
from reco_ray.segmentation.windows import segment_windows

SETTINGS = load_settings("mini", overrides=["segment.calibrate=0", "segment.refine=none"])


@pytest.fixture(scope="module")
def pixels(models: DenseModels) -> torch.Tensor:
    return torch.from_numpy(models.encoder.transform.fit(photograph(0, 300), 96, 32).copy())[None]


@pytest.fixture(scope="module")
def targets(models: DenseModels) -> Targets:
    texts = models.language.encode_texts(["dog", "grass", "car", "sky"])
    return Targets(
        torch.eye(4, models.encoder.channels), texts, torch.tensor([1, 2, 3, BACKGROUND]), background=True
    )


@pytest.mark.parametrize("changes", [{}, {"refine": "pamr"}, {"use": "language", "prefilter": 2}])
def test_one_window_is_no_window(
    models: DenseModels, targets: Targets, pixels: torch.Tensor, changes: dict[str, object]
) -> None:
    settings = SETTINGS.segment.model_copy(update={"background_threshold": 0.0, **changes})
    size = (pixels.shape[1], pixels.shape[2])  # elsewhere the two resize scores or their factors
    whole = segment(models, targets, pixels, [size], settings)[0]
    window = segment_windows(models, targets, pixels, size, settings, window=512, step=256)
    torch.testing.assert_close(window.labels, whole.labels)
    torch.testing.assert_close(window.scores, whole.scores)


@pytest.mark.parametrize("changes", [{}, {"refine": "pamr"}, {"use": "language", "prefilter": 2}])
def test_one_window_is_no_window_for_calibrated_scores_either(
    models: DenseModels, targets: Targets, pixels: torch.Tensor, changes: dict[str, object]
) -> None:
    photos = [models.encoder.transform.fit(photograph(n, 300), 96, 32).copy() for n in range(4)]
    samples = [
        sample_features(models.encode(torch.from_numpy(photo)[None]), number)
        for number, photo in enumerate(photos)
    ]
    calibrated = replace(targets, calibration=calibrate(from_bytes(to_bytes(samples)), targets))
    settings = SETTINGS.segment.model_copy(update=changes)
    size = (pixels.shape[1], pixels.shape[2])
    whole = segment(models, calibrated, pixels, [size], settings)[0]
    window = segment_windows(models, calibrated, pixels, size, settings, window=512, step=256)
    torch.testing.assert_close(window.labels, whole.labels)
    torch.testing.assert_close(window.scores, whole.scores)
    parts = segment_windows(models, calibrated, pixels, size, settings, window=64, step=32)
    assert parts.scores.isfinite().all()
    assert parts.labels.shape == size


def test_where_windows_overlap_scores_are_averaged(models: DenseModels, targets: Targets) -> None:
    photo = np.asarray(photograph(1).resize((96, 64)))
    pixels = torch.from_numpy(photo.copy())[None]
    settings = SETTINGS.segment.model_copy(update={"use": "language", "background_threshold": 0.0})
    labels = segment_windows(models, targets, pixels, (64, 96), settings, window=64, step=32).labels

    def scores(left: int) -> torch.Tensor:
        features = models.encode(pixels[:, :, left : left + 64]).language
        words = {"language_features": features, "text_embeddings": targets.text_embeddings}
        return concept_scores(None, None, **words, output_size=(64, 64))[0]

    left, right = scores(0), scores(32)
    expected = torch.cat([left[..., :32], (left[..., 32:] + right[..., :32]) / 2, right[..., 32:]], dim=2)
    torch.testing.assert_close(labels, targets.labels[expected.argmax(dim=0)])
