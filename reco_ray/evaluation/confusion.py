"""Confusion matrices and what is read off them. numpy only."""

from typing import TypedDict

import numpy as np

IGNORE = 255


class Figures(TypedDict):
    """All in [0, 1]; `iou` by class. None: there is nothing to count."""

    miou: float | None
    pixel_accuracy: float | None
    iou: list[float | None]


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts of pixels.

    Args:
        truth: int, any shape; IGNORE where nothing is counted. predicted: int, the same shape.
        classes: m; a prediction outside [0, m) counts as wrong for its true class and for no predicted one.

    Returns:
        int64 (m, m + 1): rows are truth, columns predictions, the last column for predictions outside the classes.
    """
    counted = truth != IGNORE
    columns = np.where((predicted >= 0) & (predicted < classes), predicted, classes)[counted].astype(np.int64)
    cells = truth[counted].astype(np.int64) * (classes + 1) + columns
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def scores(confusion: np.ndarray) -> Figures:
    """What a confusion matrix says.

    `miou`: mean IoU over the classes that have labelled pixels. `iou`: per class, None where a class has no labelled
    pixel; what is predicted as it counts against the true classes.
    """
    classes = len(confusion)
    correct = np.diag(confusion[:, :classes]).astype(np.float64)
    labelled = confusion.sum(axis=1)
    union = labelled + confusion[:, :classes].sum(axis=0) - correct
    occurs = labelled > 0
    iou = np.divide(correct, union, out=np.zeros(classes), where=occurs)
    total = confusion.sum()
    return {
        "miou": float(iou[occurs].mean()) if total else None,
        "pixel_accuracy": float(correct.sum() / total) if total else None,
        "iou": [float(value) if there else None for value, there in zip(iou, occurs, strict=True)],
    }
