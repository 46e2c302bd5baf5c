"""Logits of trained segmenters -> labels, one label at a time; batches; words that stay in memory."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reco_ray.config import SegmentSettings
from reco_ray.errors import RecoError
from reco_ray.models import text_cache
from reco_ray.segmentation.refine import refine
from reco_ray.serving.bank_of_request import BankRef
from reco_ray.serving.segment_task import (
    DEADLINE_EXCEEDED,
    LabelledImage,
    SegmentTask,
    TaskFailure,
    label_batch,
)
from reco_ray.serving.serving_metrics import ModelMetrics
from reco_ray.training.segmenter import best_label, label_trained
from reco_ray.vocabulary import parse_concepts

LOGITS = torch.randn(5, 8, 12, generator=torch.Generator().manual_seed(3)) * 3
PIXELS = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def test_the_best_label_is_that_of_the_softmax() -> None:
    best = F.interpolate(LOGITS[None], (31, 50), mode="bilinear", align_corners=False)[0].softmax(0).max(0)
    found = best_label(LOGITS, (31, 50))
    assert torch.equal(found.labels, best.indices)
    torch.testing.assert_close(found.scores, best.values)


def test_below_the_threshold_is_background_where_there_is_one() -> None:
    settings = SegmentSettings(background_threshold=0.9)
    plain = label_trained(LOGITS, PIXELS, (32, 48), settings, background=False)
    cut = label_trained(LOGITS, PIXELS, (32, 48), settings, background=True)
    low = plain.scores < 0.9
    assert 0 < low.float().mean() < 1
    assert torch.equal(cut.labels, plain.labels.masked_fill(low, 0))


def test_refined_labels_are_those_of_the_refined_probabilities() -> None:
    settings = SegmentSettings(refine="pamr")
    found = label_trained(LOGITS, PIXELS, (32, 48), settings, background=False)
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


def test_what_is_late_or_fails_leaves_the_others_of_its_batch() -> None:
    bank = BankRef("key", parse_concepts("cat"), (), "nowhere")
    now = time.time()
    tasks = [
        SegmentTask(np.full((4, 4, 3), value, np.uint8), (4, 4), bank, deadline)
        for value, deadline in ((0, now + 60), (1, now - 1), (2, now + 60), (3, now + 60), (4, now + 60))
    ]

    def label(task: SegmentTask, features: torch.Tensor, number: int, pixels: torch.Tensor) -> LabelledImage:
        value = int(pixels[0, 0, 0])
        assert torch.equal(features[number], pixels.float())
        if value == 2:
            raise RecoError("other models")
        if value == 3:
            raise KeyError("a bug")
        return LabelledImage(np.full(task.size, value, np.uint8), [])

    found = label_batch(tasks, torch.Tensor.float, label, ModelMetrics())
    assert [each.status if isinstance(each, TaskFailure) else int(each.labels[0, 0]) for each in found] == [
        0, 503, 409, 500, 4,
    ]  # fmt: skip
    assert label_batch(tasks[1:2], torch.Tensor.float, label, ModelMetrics()) == [DEADLINE_EXCEEDED]
