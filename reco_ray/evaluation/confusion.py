"""Confusion matrices and the metrics computed from them. numpy only."""

from typing import TypedDict

import numpy as np

IGNORE = 255


class Figures(TypedDict):
    """Metrics in [0, 1]; None if no pixel is counted.

    Attributes:
        miou: Mean IoU over the classes that have labelled pixels.
        pixel_accuracy: Share of the counted pixels that are correct.
        iou: IoU of each class; None for a class without labelled pixels.
    """

    miou: float | None
    pixel_accuracy: float | None
    iou: list[float | None]


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts pixels by true and predicted class.

    Args:
        truth: Integer, any shape; IGNORE where nothing is counted.
        predicted: Integer, the same shape.
        classes: Number of classes m. A prediction outside [0, m) is an error of its true class only.

    Returns:
        int64 (m, m + 1): rows are true classes, columns predictions; the last column is for predictions outside [0, m).
    """
    counted = truth != IGNORE
    columns = np.where((predicted >= 0) & (predicted < classes), predicted, classes)[counted].astype(np.int64)
    cells = truth[counted].astype(np.int64) * (classes + 1) + columns
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def scores(confusion: np.ndarray) -> Figures:
    """Computes the metrics of a confusion matrix, int64 (m, m + 1)."""
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
