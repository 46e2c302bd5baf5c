"""Reads every image and label file before anything is built, so that errors are found before hours of work."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.errors import UnreadableError, reason
from reco_ray.evaluation.confusion import IGNORE
from reco_ray.evaluation.dataset import Dataset, Sample
from reco_ray.files import storage
from reco_ray.presentation.console import console, progress

MAX_NAMED = 8  # classes named in a warning
_SMALL = 64  # short side in pixels at which JPEGs are decoded for this check


def require_countable(
    dataset: Dataset, max_pixels: int, cut: Callable[[np.ndarray], np.ndarray] | None = None
) -> None:
    """Reads all samples and prints which classes have no labelled pixel.

    Args:
        dataset: The data set.
        max_pixels: Larger images are refused.
        cut: Maps label maps to the part that is counted; None = all of it.

    Raises:
        RecoError: If an image or a label file cannot be used, they do not match, no pixel is counted, or only pixels of
            one class are counted, so that the mean over classes is meaningless.
    """

    def count(sample: Sample) -> np.ndarray:
        truth = dataset.truth(sample, _size(sample, max_pixels))
        return np.bincount((cut(truth) if cut else truth).reshape(-1), minlength=256)

    pixels = np.zeros(256, np.int64)
    with progress("labels", len(dataset.samples)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for counted in pool.map(count, dataset.samples):
            pixels += counted
            advance(1)
    for line in absent_class_warnings(dataset, pixels):
        console.print(f"labels     {line}")


def absent_class_warnings(dataset: Dataset, pixels: np.ndarray) -> list[str]:
    """Warnings about classes without labelled pixels.

    Args:
        dataset: The data set.
        pixels: int64 (256,), number of pixels of each class; at IGNORE those that are not counted.

    Raises:
        UnreadableError: If fewer than two classes have pixels.
    """
    there = [name for number, name in enumerate(dataset.classes) if pixels[number]]
    absent = [name for number, name in enumerate(dataset.classes) if not pixels[number]]
    files = f"{dataset.name}: its label files ({len(dataset.samples):,})"
    ids = "bright pixels show the class" if dataset.binary else f"their ids: {dataset.ids_in_words}"
    if not there:
        raise UnreadableError(f"{files} have no pixel that counts ({ids}): there is nothing to measure")
    if not absent and len(there) == 1:
        raise UnreadableError(
            f"{dataset.name}: {there[0]} is the only class, so every answer is right: give a second one, or name "
            "'background' first"
        )
    if len(there) == 1:
        ignored = f", {pixels[IGNORE]:,} pixels do not count" if pixels[IGNORE] else ""
        raise UnreadableError(
            f"{files} show {there[0]} and no other class{ignored} ({ids}): the mean over a single class is meaningless"
        )
    if not absent:
        return []
    named = ", ".join(absent[:MAX_NAMED]) + (", ..." if len(absent) > MAX_NAMED else "")
    return [
        f"{len(absent)} of {len(dataset.classes)} classes have no labelled pixel and are not in the mean: {named}"
    ]


def _size(sample: Sample, max_pixels: int) -> tuple[int, int]:
    """Decodes an image; returns its (height, width) after applying the EXIF orientation."""
    try:
        _, width, height = decode_image(
            storage.read_bytes(sample.image), max_pixels=max_pixels, short_side=_SMALL
        )
    except DecodeError as error:
        raise UnreadableError(f"{sample.image}: {error}: every image of a benchmark is needed") from error
    except OSError as error:
        raise UnreadableError(
            f"{sample.image}: {reason(error)}: every image of a benchmark is needed"
        ) from error
    return height, width
