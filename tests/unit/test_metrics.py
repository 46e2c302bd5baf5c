"""Figures are counted as everybody counts them: against torchmetrics, and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from reco_ray.evaluation.confusion import IGNORE, confusion_matrix, scores
from reco_ray.evaluation.jaccard import jaccard


def test_by_hand() -> None:
    truth = np.array([[0, 0, 1], [1, IGNORE, 1]])
    predicted = np.array([[0, 1, 1], [1, 0, 7]])
    matrix = confusion_matrix(truth, predicted, 3)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0]]
    figures = scores(matrix)
    assert figures["iou"] == [0.5, 0.5, None]
    assert figures["miou"] == 0.5
    assert figures["pixel_accuracy"] == pytest.approx(3 / 5)


def test_a_class_without_labelled_pixels_is_absent_and_what_is_taken_for_it_is_wrong() -> None:
    figures = scores(confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), 3))
    assert figures["iou"] == [0.5, 1.0, None]
    assert figures["miou"] == 0.75


def test_nothing_to_count_gives_no_figure() -> None:
    figures = scores(confusion_matrix(np.array([IGNORE]), np.array([0]), 2))
    assert figures == {"miou": None, "pixel_accuracy": None, "iou": [None, None]}


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_agrees_with_torchmetrics(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (3, 9, 11))
    predicted = random.integers(0, classes, truth.shape)
    truth[random.random(truth.shape) < 0.1] = IGNORE
    figures = scores(sum(confusion_matrix(t, p, classes) for t, p in zip(truth, predicted, strict=True)))
    arguments = (torch.from_numpy(predicted), torch.from_numpy(truth), classes)
    iou = multiclass_jaccard_index(*arguments, average=None, ignore_index=IGNORE)
    np.testing.assert_allclose(figures["iou"], iou.numpy(), rtol=1e-5)
    accuracy = multiclass_accuracy(*arguments, average="micro", ignore_index=IGNORE)
    assert figures["pixel_accuracy"] == pytest.approx(accuracy.item(), rel=1e-5)


def test_jaccard_by_hand() -> None:
    truth = np.array([[True, True, False, False]])
    assert jaccard(truth, truth) == 1.0
    assert jaccard(truth, np.array([[False, True, True, False]])) == pytest.approx(1 / 3)
    assert jaccard(truth, ~truth) == 0.0
    assert jaccard(truth & False, truth & False) == 1.0
