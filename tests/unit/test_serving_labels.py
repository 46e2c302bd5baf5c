"""Logits of trained segmenters -> labels, one label at a time; words that stay in memory."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from reco_ray.config import SegmentSettings
from reco_ray.models import text_cache
from reco_ray.segmentation.refine import refine
from reco_ray.serving.segmenters import label_logits
from reco_ray.training.segmenter import best_label

LOGITS = torch.randn(5, 8, 12, generator=torch.Generator().manual_seed(3)) * 3
PIXELS = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def test_the_best_label_is_that_of_the_softmax() -> None:
    best = F.interpolate(LOGITS[None], (31, 50), mode="bilinear", align_corners=False)[0].softmax(0).max(0)
    found = best_label(LOGITS, (31, 50))
    assert torch.equal(found.labels, best.indices)
    torch.testing.assert_close(found.scores, best.values)


def test_below_the_threshold_is_background_where_there_is_one() -> None:
    settings = SegmentSettings(background_threshold=0.9)
    plain = label_logits(LOGITS, PIXELS, (32, 48), settings, background=False)
    cut = label_logits(LOGITS, PIXELS, (32, 48), settings, background=True)
    low = plain.scores < 0.9
    assert 0 < low.float().mean() < 1
    assert torch.equal(cut.labels, plain.labels.masked_fill(low, 0))


def test_refined_labels_are_those_of_the_refined_probabilities() -> None:
    settings = SegmentSettings(refine="pamr")
    found = label_logits(LOGITS, PIXELS, (32, 48), settings, background=False)
    full = F.interpolate(LOGITS[None], (32, 48), mode="bilinear", align_corners=False)[0].softmax(0)
    expected = refine(full, PIXELS.permute(2, 0, 1), "pamr").argmax(0)
    assert (found.labels == expected).float().mean() > 0.999


def test_a_server_keeps_strangers_words_in_memory_and_forgets_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECO_CACHE", str(tmp_path))
    monkeypatch.setattr(text_cache, "_in_memory", False)
    monkeypatch.setattr(text_cache, "_MAX_IN_MEMORY", 3)
    encoded: list[str] = []

    def encode(texts: list[str]) -> torch.Tensor:
        encoded.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    cache = text_cache.TextCache("model")
    cache.lookup(["known"], encode, torch.device("cpu"))
    written = list(tmp_path.rglob("*.safetensors"))
    assert len(written) == 1
    text_cache.keep_in_memory()
    for number in range(10):
        rows = cache.lookup(["x" * number], encode, torch.device("cpu"))
        assert rows.tolist() == [[number]]
    assert list(tmp_path.rglob("*.safetensors")) == written
    assert len(cache._known) <= 5
    before = len(encoded)
    cache.lookup(["x" * 9], encode, torch.device("cpu"))
    assert len(encoded) == before
