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


def empty_matrix(classes: int) -> np.ndarray:
    """A confusion matrix of m classes without a pixel: int64 (m, m + 1)."""
    return np.zeros((classes, classes + 1), np.int64)


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


def image_jaccards(confusion: np.ndarray, background: bool) -> dict[int, float]:
    """Jaccard index of every class that an image shows: its pixels against those predicted as the class.

    Args:
        confusion: Confusion matrix of one image, int64 (m, m + 1).
        background: Whether class 0 is the background, which has no Jaccard index.

    Returns:
        Class -> Jaccard index in [0, 1].
    """
    iou = scores(confusion)["iou"]
    first = int(background)
    return {number: value for number, value in enumerate(iou[first:], first) if value is not None}


def mean_jaccards(images: list[dict[int, float]], classes: int) -> tuple[float | None, list[float | None]]:
    """Averages Jaccard indices over the images that show a class, then over classes, which count the same.

    Args:
        images: `image_jaccards` of every image.
        classes: Number of classes m.

    Returns:
        The mean over the classes that any image shows, None if there is none; and the mean of each class, None for a
        class that no image shows.
    """
    by_class = [[image[number] for image in images if number in image] for number in range(classes)]
    means = [float(np.mean(values)) if values else None for values in by_class]
    shown = [mean for mean in means if mean is not None]
    return (float(np.mean(shown)) if shown else None), means
