"""HTML report of an evaluation: the results, the classes, and the images with the lowest and highest mIoU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from reco_ray.config import Settings
from reco_ray.cosegmentation.sample import open_sample
from reco_ray.evaluation.compare import Compared, Comparer, Trained, Variant, sample_loader
from reco_ray.evaluation.confusion import IGNORE
from reco_ray.evaluation.dataset import Dataset
from reco_ray.evaluation.evaluation_protocol import Protocol
from reco_ray.evaluation.results_table import class_tables, figure_columns
from reco_ray.files import storage
from reco_ray.presentation.html import css_colour, jpeg_uri, render_page
from reco_ray.segmentation.overlay import overlay

SHOWN = 6  # images in each group
_WIDTH = 420  # of embedded pictures, pixels
_NOT_COUNTED = (128, 128, 128)


def write_report(
    out: str,
    results: dict[str, Any],
    dataset: Dataset,
    variant: Mapping[str, Variant | Trained],
    image_miou: dict[int, float | None],
    protocol: Protocol,
    settings: Settings,
    sample: str | None = None,
) -> str:
    """Writes `index.html` and returns its URI.

    Args:
        out: URI of the folder.
        results: Content of `results.json`.
        dataset: The data set.
        variant: Name -> the one variant whose predictions are shown.
        image_miou: Number of a sample -> its mIoU with that variant.
        protocol: The evaluation protocol.
        settings: All settings.
        sample: URI of the feature sample of the images, as of `score`.
    """
    ranked = [number for number, miou in sorted(image_miou.items()) if miou is not None]
    ranked.sort(key=lambda number: image_miou[number] or 0.0)
    worst = ranked[:SHOWN]
    best = ranked[len(worst) :][-SHOWN:][::-1]
    compared = _compare(worst + best, dataset, variant, protocol, settings, sample)
    shown = {entry.number: _pictures(entry, dataset, image_miou) for entry in compared}
    colours = [css_colour(colour) for colour in dataset.colours]
    page = render_page(
        "evaluation.html",
        results=results,
        columns=figure_columns(results["variants"]),
        tables=class_tables(results["variants"]),
        variant=next(iter(variant)),
        colours=colours,
        colour_of=dict(zip(dataset.classes, colours, strict=True)),
        classes=dataset.classes,
        groups={"Worst": [shown[number] for number in worst], "Best": [shown[number] for number in best]},
    )
    uri = storage.join(out, "index.html")
    storage.write_bytes(uri, page)
    return uri


def _compare(
    numbers: list[int],
    dataset: Dataset,
    variant: Mapping[str, Variant | Trained],
    protocol: Protocol,
    settings: Settings,
    sample: str | None,
) -> list[Compared]:
    """Segments the samples to show again, so that predictions of the others need not be stored."""
    if not numbers:
        return []
    features = None if sample is None else open_sample(sample)
    compare = Comparer(dataset, variant, protocol, settings, "cpu", features)
    encoder = compare.models.encoder
    load = sample_loader(encoder.transform, encoder.stride, protocol, settings.segment.max_pixels)
    return list(
        compare(load(pa.table({"uri": [dataset.samples[n].image for n in numbers], "number": numbers})))
    )


def _pictures(compared: Compared, dataset: Dataset, image_miou: dict[int, float | None]) -> dict[str, Any]:
    height, width = compared.truth.shape
    size = (_WIDTH, max(1, round(_WIDTH * height / width)))
    photo = np.asarray(Image.fromarray(compared.pixels).resize(size))
    colours = np.full((IGNORE + 1, 3), _NOT_COUNTED, np.uint8)
    colours[: len(dataset.colours)] = dataset.colours

    def picture(labels: np.ndarray) -> str:
        small = Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        return jpeg_uri(Image.fromarray(overlay(photo, np.asarray(small), colours)))

    (predicted,) = compared.predicted.values()
    present = set(np.unique(compared.truth)) | set(np.unique(predicted))
    return {
        "name": "/".join(dataset.samples[compared.number].image.split("/")[-2:]),
        "miou": image_miou[compared.number],
        "photo": jpeg_uri(Image.fromarray(photo)),
        "truth": picture(compared.truth),
        "predicted": picture(predicted),
        "classes": sorted(int(label) for label in present - {IGNORE}),
    }
