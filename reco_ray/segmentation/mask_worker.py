"""The worker that makes masks: it labels loaded images, with references or trained segmenters, and writes the files."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reco_ray.corpus.stage import write_rejected
from reco_ray.distributed.parts import Report, Worker
from reco_ray.files import storage
from reco_ray.files.read_ahead import prefetched
from reco_ray.segmentation.masks import REGIONS_SCHEMA, Region, encode_png, mask_file, overlay_file, regions
from reco_ray.segmentation.overlay import overlay, with_legend
from reco_ray.segmentation.segment import SegmentedImage

_GPU_WRITERS = 4  # threads that encode and write files beside a GPU, which would wait for them


@dataclass(frozen=True)
class LabelledRow:
    """The labels of one loaded image.

    Attributes:
        row: its number in the table that was labelled.
        pixels: uint8 (h, w, 3), as they were segmented.
        labels: label ids, uint8 or int32 (H, W).
        scores: of the labels, float32 (H, W).
    """

    row: int
    pixels: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, row: int, pixels: np.ndarray, found: SegmentedImage, labels: int) -> "LabelledRow":
        """Copies a result from its device; `labels` is the number of label ids, which decides their dtype."""
        ids = found.labels.to(torch.uint8 if labels <= 256 else torch.int32)
        return cls(row, pixels, ids.cpu().numpy(), found.scores.float().cpu().numpy())


class Labeller(ABC):
    """Labels loaded images. Created in the driver and sent to every worker, which calls `set_up` once."""

    @abstractmethod
    def set_up(self, device: str) -> None:
        """Loads models onto a device."""

    @abstractmethod
    def label(self, images: pa.Table) -> Iterator[LabelledRow]:
        """Labels loaded rows that all have pixels, in any order."""


@dataclass(frozen=True)
class MaskSet:
    """One masks artifact that a pass over the images makes.

    Attributes:
        out: URI of the artifact.
        labeller: labels the images for it.
        labels: names of the label ids.
        colours: of the labels, uint8 (m, 3).
        committed: parts that it has already.
    """

    out: str
    labeller: Labeller
    labels: Sequence[str]
    colours: np.ndarray
    committed: frozenset[str] = frozenset()


class MaskWorker(Worker[Report]):
    """Labels the loaded rows of a shard for every set of masks, and commits them.

    Args:
        sets: masks to make.
        overlays: whether to write overlays.
    """

    report = Report

    def __init__(self, sets: Sequence[MaskSet], *, overlays: bool) -> None:
        self._sets, self._overlays = sets, overlays

    def set_up(self, device: str) -> None:
        """Loads the models of all sets."""
        for one in self._sets:
            one.labeller.set_up(device)
        self._writers = _GPU_WRITERS if device.startswith("cuda") else 1

    def work(self, name: str, rows: pa.Table) -> Report:
        """Writes masks, overlays and rejected rows, and last the table of regions, which commits the shard."""
        usable = rows.filter(rows["pixels"].is_valid())
        entries = usable.select(["uri", "name", "width", "height"]).to_pylist()
        for one in self._sets:
            if name in one.committed:
                continue
            write = partial(self._write, one, entries)
            labelled = one.labeller.label(usable)
            found = dict(prefetched(write, labelled, threads=self._writers, ahead=2 * self._writers))
            write_rejected(one.out, name, rows)
            regions = [region for row in sorted(found) for region in found[row]]
            table = pa.Table.from_pylist(regions, schema=REGIONS_SCHEMA)
            storage.write_table(storage.join(one.out, "regions", f"{name}.parquet"), table)
        return Report(rows.num_rows)

    def _write(
        self, one: MaskSet, entries: list[dict[str, Any]], labelled: LabelledRow
    ) -> tuple[int, list[dict[str, object]]]:
        """Writes the files of one image; returns its row and its rows of REGIONS_SCHEMA."""
        entry = entries[labelled.row]
        mask = mask_file(entry["name"])
        storage.write_bytes(storage.join(one.out, mask), encode_png(labelled.labels, one.colours))
        found = regions(labelled.labels, labelled.scores)
        if self._overlays:
            _write_overlay(one, entry["name"], labelled, found)
        shared = {"mask": mask, **entry}
        return labelled.row, [
            {**shared, "concept": one.labels[region["label"]], **region} for region in found
        ]


def _write_overlay(one: MaskSet, name: str, labelled: LabelledRow, found: list[Region]) -> None:
    pixels, labels = labelled.pixels, labelled.labels
    height, width = pixels.shape[:2]
    rows = np.arange(height) * labels.shape[0] // height
    cols = np.arange(width) * labels.shape[1] // width
    picture = overlay(pixels, labels[rows][:, cols], one.colours)
    legend = [
        (one.labels[f["label"]], tuple(one.colours[f["label"]].tolist()), f["area"] / labels.size)
        for f in sorted(found, key=lambda f: -f["area"])
    ]
    storage.write_bytes(storage.join(one.out, overlay_file(name)), with_legend(picture, legend))
