"""Label maps to responses: JSON with run-length masks, an indexed PNG, or a JPEG with a legend."""

import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from reco_ray.config import SegmentSettings
from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.models.image import ImageTransform
from reco_ray.segmentation.masks import encode_png, run_lengths
from reco_ray.segmentation.overlay import overlay, with_legend
from reco_ray.segmentation.palette import palette
from reco_ray.segmentation.targets import has_background, label_names
from reco_ray.serving.bank_of_request import BankRef
from reco_ray.serving.contract import Label, Region, RunLengths, SegmentationResource
from reco_ray.serving.problems import Problem
from reco_ray.serving.segment_task import LabelledImage

JSON, PNG, JPEG = "application/json", "image/png", "image/jpeg"
COCO, LABEL_STUDIO = "application/vnd.coco+json", "application/vnd.label-studio+json"
DEFAULT_SIDE = 1024  # of an answer, pixels, where none is asked for
MEDIA_TYPES = {"json": JSON, "png": PNG, "jpeg": JPEG, "coco": COCO, "label-studio": LABEL_STUDIO}
_OFFERED = tuple(MEDIA_TYPES.values())


@dataclass(frozen=True)
class InputSpec:
    """Input format of a model.

    model: its name, for answers.
    transform: resizes and normalises.
    stride: height and width are multiples of it, pixels.
    short_side: approximate shorter side, pixels.
    """

    model: str
    transform: ImageTransform
    stride: int
    short_side: int


@dataclass(frozen=True)
class Picture:
    """A decoded upload.

    pixels: uint8 (H, W, 3), at the size that the model takes.
    photo: uint8 of shape (*size, 3), for JPEG answers, else None.
    size: (height, width) of the answer.
    original: (height, width) of the upload, upright.
    """

    pixels: np.ndarray
    photo: np.ndarray | None
    size: tuple[int, int]
    original: tuple[int, int]


def choose_type(accept: str) -> str:
    """The media type that an Accept header prefers; JSON if it has no preference.

    Raises:
        Problem: 406, none of the types that are offered is accepted.
    """
    qualities = dict.fromkeys(_OFFERED, 0.0)
    specific = dict.fromkeys(_OFFERED, -1)
    for entry in (accept or "*/*").split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            value = float(quality)
        except ValueError:
            continue
        for offered in _OFFERED:
            family = offered.partition("/")[0] + "/*"
            rank = {offered: 2, family: 1, "*/*": 0}.get(kind, -1)
            if rank > specific[offered]:
                specific[offered], qualities[offered] = rank, value
    best = max(_OFFERED, key=lambda offered: (qualities[offered], -_OFFERED.index(offered)))
    if qualities[best] <= 0:
        raise Problem(406, f"Accept: there are {', '.join(_OFFERED)}")
    return best


def decode(
    data: bytes, wanted: InputSpec, max_pixels: int, max_side: int | None, with_photo: bool
) -> Picture:
    """Decodes and resizes an upload.

    Raises:
        Problem: 422, the image cannot be decoded or is too large.
    """
    longest = max_side or DEFAULT_SIDE
    try:
        image, width, height = decode_image(
            data,
            max_pixels=max_pixels,
            short_side=max(wanted.short_side, longest) if with_photo else wanted.short_side,
        )
    except DecodeError as error:
        raise Problem(422, f"image: {error}") from None
    scale = min(1.0, longest / max(width, height))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    photo = None
    if with_photo:
        photo = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    pixels = wanted.transform.fit(image, wanted.short_side, wanted.stride)
    return Picture(np.ascontiguousarray(pixels), photo, size, (height, width))


class Legend:
    """Names, colours and concept ids of the labels of an answer, and whether their scores are probabilities.

    `settings` must include the options of the request.
    """

    def __init__(self, bank: BankRef, settings: SegmentSettings) -> None:
        if bank.segmenter:
            self.names, self.background = list(bank.labels), bank.background
            ids: list[str | None] = [None] * len(self.names)
        else:
            self.background = has_background(bank, settings)
            self.names = label_names(bank, settings)
            ids = [*([None] if self.background else []), *bank.ids]
        self.ids = ids
        self.probabilities = bank.segmenter or settings.calibrate > 0
        self.colours = palette(len(self.names), background=self.background)

    def entry(self, label: int) -> Label:
        """One label as part of an answer."""
        red, green, blue = self.colours[label].tolist()
        colour = f"#{red:02x}{green:02x}{blue:02x}"
        return Label(label=label, id=self.ids[label], name=self.names[label], colour=colour)


def as_json(
    labelled: LabelledImage,
    legend: Legend,
    *,
    request_id: str,
    model: str,
    vocabulary: str | None,
    started: float,
) -> SegmentationResource:
    """All labels that are present, by decreasing area, as run lengths; started: `perf_counter()` at the start."""
    height, width = labelled.labels.shape
    runs = run_lengths(labelled.labels, [label for label, _, _ in labelled.found])
    labels = [legend.entry(label) for label in range(len(legend.names))]
    regions = [
        Region(
            **dict(labels[label]),
            area=area,
            share=area / (height * width),
            score=score,
            rle=RunLengths(size=(height, width), counts=rle),
        )
        for (label, area, score), rle in zip(labelled.found, runs, strict=True)
    ]
    return SegmentationResource(
        request_id=request_id,
        model=model,
        vocabulary=vocabulary,
        width=width,
        height=height,
        background=legend.background,
        probabilities=legend.probabilities,
        concepts=tuple(sorted(regions, key=lambda region: -region.area)),
        legend=tuple(labels),
        seconds=round(time.perf_counter() - started, 4),
    )


def as_png(labelled: LabelledImage, legend: Legend) -> bytes:
    """An indexed PNG: pixel values are label ids."""
    return encode_png(labelled.labels, legend.colours)


def as_jpeg(labelled: LabelledImage, legend: Legend, photo: np.ndarray) -> bytes:
    """A JPEG of the image with its labels drawn over it, and a legend below."""
    found = sorted(labelled.found, key=lambda each: -each[1])
    entries = [
        (legend.names[label], tuple(legend.colours[label].tolist()), area / labelled.labels.size)
        for label, area, _ in found
    ]
    return with_legend(overlay(photo, labelled.labels, legend.colours), entries)
