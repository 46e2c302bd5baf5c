"""Looks at every image and label file before anything is built: what cannot be measured ends here, not after hours."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reco_ray import storage
from reco_ray.console import console, progress
from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.errors import RecoError, reason
from reco_ray.evaluation.confusion import IGNORE
from reco_ray.evaluation.dataset import Dataset, Sample

MOST_NAMED = 8  # classes, in a remark
_SMALL = 64  # pixels that JPEGs are decoded at here


def require_countable(
    dataset: Dataset, max_pixels: int, cut: Callable[[np.ndarray], np.ndarray] | None = None
) -> None:
    """Reads all samples; says on the terminal which classes have no labelled pixel.

    Args:
        max_pixels: of an image, larger ones are refused. cut: what of a truth is counted; None = all of it.

    Raises:
        RecoError: an image or a label file cannot be used or they do not fit each other, no pixel counts, or the pixels
            of one class only, over which a mean says nothing.
    """

    def count(sample: Sample) -> np.ndarray:
        truth = dataset.truth(sample, _size(sample, max_pixels))
        return np.bincount((cut(truth) if cut else truth).reshape(-1), minlength=256)

    pixels = np.zeros(256, np.int64)
    with progress("labels", len(dataset.samples)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for counted in pool.map(count, dataset.samples):
            pixels += counted
            advance(1)
    for line in remarks(dataset, pixels):
        console.print(f"labels     {line}")


def remarks(dataset: Dataset, pixels: np.ndarray) -> list[str]:
    """What to say about the labelled pixels of each class.

    Args:
        pixels: int64 (256,), by class; at IGNORE those that do not count.

    Raises:
        RecoError: they give no figure.
    """
    there = [name for number, name in enumerate(dataset.classes) if pixels[number]]
    absent = [name for number, name in enumerate(dataset.classes) if not pixels[number]]
    files = f"{dataset.name}: its label files ({len(dataset.samples):,})"
    ids = "bright pixels show the class" if _binary(dataset) else f"their ids: {dataset.ids_in_words}"
    if not there:
        raise RecoError(f"{files} have no pixel that counts ({ids}): there is nothing to measure")
    if not absent and len(there) == 1:
        raise RecoError(
            f"{dataset.name}: {there[0]} is the only class, so every answer is right: give a second one, or name "
            "'background' first"
        )
    if len(there) == 1:
        ignored = f", {pixels[IGNORE]:,} pixels do not count" if pixels[IGNORE] else ""
        raise RecoError(
            f"{files} show {there[0]} and no other class{ignored} ({ids}): the mean over one class says nothing"
        )
    if not absent:
        return []
    named = ", ".join(absent[:MOST_NAMED]) + (", ..." if len(absent) > MOST_NAMED else "")
    return [
        f"{len(absent)} of {len(dataset.classes)} classes have no labelled pixel and are not in the mean: {named}"
    ]


def _binary(dataset: Dataset) -> bool:
    return all(sample.binary_of is not None for sample in dataset.samples)


def _size(sample: Sample, max_pixels: int) -> tuple[int, int]:
    """(height, width) of the upright image, which is decoded to see whether it can be."""
    try:
        _, width, height = decode_image(
            storage.read_bytes(sample.image), max_pixels=max_pixels, short_side=_SMALL
        )
    except DecodeError as error:
        raise RecoError(f"{sample.image}: {error}: every image of a benchmark is needed") from error
    except OSError as error:
        raise RecoError(f"{sample.image}: {reason(error)}: every image of a benchmark is needed") from error
    return height, width
