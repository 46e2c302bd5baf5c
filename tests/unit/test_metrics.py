"""Figures are counted as everybody counts them: against torchmetrics, and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_jaccard_index,
    multiclass_accuracy,
    multiclass_jaccard_index,
)

from reco_ray.config import load_settings
from reco_ray.evaluation.compare import Compared, Variant, WithBackground
from reco_ray.evaluation.confusion import (
    IGNORE,
    confusion_matrix,
    image_jaccards,
    mean_jaccards,
    scores,
)
from reco_ray.evaluation.dataset import Dataset, Sample
from reco_ray.evaluation.evaluation_protocol import Protocol
from reco_ray.evaluation.evaluation_report import write_report
from reco_ray.evaluation.jaccard import jaccard
from reco_ray.evaluation.results_table import as_table
from reco_ray.evaluation.variant_scores import VariantScores
from reco_ray.segmentation.palette import palette
from reco_ray.vocabulary import Concept, Vocabulary


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


def shown(
    truth: list[int], predicted: list[int], classes: int = 3, background: bool = True
) -> dict[int, float]:
    return image_jaccards(confusion_matrix(np.array(truth), np.array(predicted), classes), background)


def test_jaccard_indices_of_an_image_by_hand() -> None:
    """Class 1 has pixels 2 to 4 of which one is found, and one is found outside; pixel 5 is not counted."""
    truth, predicted = [0, 0, 1, 1, 1, IGNORE], [1, 0, 1, 0, 2, 1]
    assert shown(truth, predicted) == {1: 1 / 4}
    assert shown(truth, predicted, background=False) == {0: 1 / 3, 1: 1 / 4}


def test_a_class_that_an_image_does_not_show_has_no_jaccard_index() -> None:
    assert shown([0, 0, 2], [1, 1, 2]) == {2: 1.0}
    assert shown([0, 0, 0], [1, 2, 0]) == {}
    assert shown([IGNORE], [1]) == {}


def test_an_image_that_is_predicted_as_background_has_a_jaccard_index_of_zero() -> None:
    assert shown([0, 1, 2], [0, 0, 0]) == {1: 0.0, 2: 0.0}
    matrix = confusion_matrix(np.array([0, 0, 0, 1, 2]), np.zeros(5, int), 3)
    assert scores(matrix)["iou"] == [3 / 5, 0.0, 0.0]


def test_jaccard_indices_are_averaged_over_images_then_over_classes() -> None:
    mean, by_class = mean_jaccards([{1: 0.2}, {1: 0.4, 2: 0.9}, {}], 4)
    assert by_class == [None, pytest.approx(0.3), 0.9, None]
    assert mean == pytest.approx(0.6)
    assert mean_jaccards([{}], 2) == (None, [None, None])


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_jaccard_indices_agree_with_torchmetrics(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = random.integers(0, classes, (2, 7, 9))
    truth[random.random(truth.shape) < 0.1] = IGNORE
    found = image_jaccards(confusion_matrix(truth, predicted, classes), background=True)
    counted = truth != IGNORE
    expected = {
        number: binary_jaccard_index(
            torch.from_numpy(predicted[counted] == number), torch.from_numpy(truth[counted] == number)
        ).item()
        for number in range(1, classes)
        if (truth == number).any()
    }
    assert found == pytest.approx(expected, rel=1e-5)


# --- figures of a variant, in results, table and report ------------------------------------------------------------


def test_figures_of_binary_masks_by_hand(tmp_path: Path) -> None:
    """Two dogs, one found and one flooded, a cat taken for background, and no bus."""
    dataset = data_set(["dog", "cat", "bus"], binary=[0, 0, 1])
    assert dataset.classes_with_background == ["background", "dog", "cat", "bus"]
    truths = np.array([[0, IGNORE], [0, IGNORE], [1, IGNORE]])
    without, with_background = np.array([[0, 2], [0, 0], [0, 1]]), np.array([[1, 0], [1, 1], [0, 0]])
    figures = measured(dataset, truths, without, with_background).figures("ReCo")
    assert figures["iou"] == {"dog": 2 / 3, "cat": 0.0, "bus": None}
    assert figures["miou"] == 1 / 3
    assert figures["pixel_accuracy"] == 2 / 3
    assert figures["iou_with_background"] == {"background": 2 / 4, "dog": 2 / 3, "cat": 0.0, "bus": None}
    assert figures["miou_with_background"] == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)
    assert figures["mask_jaccard_by_class"] == {
        "dog": pytest.approx((1 + 1 / 2) / 2),
        "cat": 0.0,
        "bus": None,
    }
    assert figures["mask_jaccard"] == pytest.approx((0.75 + 0.0) / 2)
    assert_shown(
        dataset,
        figures,
        ["mIoU of 4 classes", "38.9", "mask Jaccard", "37.5", "IoU of 4 classes", "background", "75.0"],
        tmp_path,
    )


def test_figures_of_label_maps_with_a_background_by_hand(tmp_path: Path) -> None:
    """The mIoU counts the background anyway; the Jaccard index is that of each class in each image."""
    dataset = data_set(["background", "dog", "cat"])
    truths = np.array([[0, 1, 1, 2], [0, 0, IGNORE, 2]])
    predicted = np.array([[0, 1, 0, 2], [2, 0, 1, 2]])
    figures = measured(dataset, truths, predicted).figures("ReCo")
    assert figures["iou"] == {"background": 2 / 4, "dog": 1 / 2, "cat": 2 / 3}
    assert figures["miou_with_background"] == figures["miou"]
    assert figures["iou_with_background"] == figures["iou"]
    assert figures["mask_jaccard_by_class"] == {"dog": 1 / 2, "cat": (1 + 1 / 2) / 2}
    assert figures["mask_jaccard"] == 0.625
    assert_shown(dataset, figures, ["mIoU of 3 classes", "55.6", "mask Jaccard", "62.5", "75.0"], tmp_path)


def test_label_maps_without_a_background_have_only_jaccard_indices(tmp_path: Path) -> None:
    dataset = data_set(["dog", "cat"])
    assert dataset.classes_with_background is None
    figures = measured(dataset, np.array([[0, 0, 1]]), np.array([[0, 1, 1]])).figures("ReCo")
    assert figures["miou_with_background"] is figures["iou_with_background"] is None
    assert figures["mask_jaccard_by_class"] == {"dog": 0.5, "cat": 0.5}
    page, table = assert_shown(dataset, figures, ["mask Jaccard", "50.0"], tmp_path)
    assert "mIoU of" not in page
    assert "mIoU of" not in table


def data_set(classes: list[str], binary: list[int] | None = None) -> Dataset:
    """A data set without files. binary: the class of each mask."""
    background = classes[0] == "background"
    concepts = tuple(Concept(name=name) for name in classes[background:])
    return Dataset(
        name="masks",
        classes=classes,
        vocabulary=Vocabulary(concepts=concepts, background=background),
        class_of=list(range(len(classes))),
        samples=[Sample("x.jpg", "x.png", one) for one in binary or [None]],
        label_ids={},
        colours=palette(len(classes), background=background),
    )


def measured(
    dataset: Dataset, truths: np.ndarray, predicted: np.ndarray, with_background: np.ndarray | None = None
) -> VariantScores:
    """Counts one variant image by image, as the worker does. with_background: predictions for binary masks."""
    compared = [
        Compared(
            number,
            np.zeros((1, 1, 3), np.uint8),
            truth,
            {"ReCo": predicted[number]},
            None
            if with_background is None
            else WithBackground(dataset.add_background(truth), {"ReCo": with_background[number]}),
        )
        for number, truth in enumerate(truths)
    ]
    counted = VariantScores.empty(dataset, ["ReCo"])
    for one in compared:
        counted.add(one)
    return counted


def assert_shown(
    dataset: Dataset, figures: dict[str, Any], texts: list[str], folder: Path
) -> tuple[str, str]:
    """The page and the table of an evaluation have these texts, `results.json` these figures; page and table."""
    results = {
        "benchmark": dataset.name,
        "images": len(dataset.samples),
        "protocol": {"name": "whole", "short_side": 64},
        "settings": {"preset": "mini"},
        "variants": {"ReCo": figures},
        "machine": {"processor": "one"},
        "cluster": {"nodes": 1},
    }
    assert json.loads(json.dumps(results))["variants"]["ReCo"] == figures
    table = as_table(results)
    protocol = Protocol("whole", 64)
    settings = load_settings("mini")
    way = {"ReCo": Variant("no references are needed without images", settings.segment)}
    uri = write_report(str(folder), results, dataset, way, {0: None}, protocol, settings)
    page = Path(uri).read_text()
    for text in texts:
        assert text in table
        assert text in page
    return page, table
