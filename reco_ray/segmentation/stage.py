"""The segment stage on Ray: segments images shard by shard, resumable."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from reco_ray.config import Settings
from reco_ray.contents import MasksContent
from reco_ray.corpus.load import ImageLoader, pixels_of, whole_image_loader
from reco_ray.corpus.read import list_images
from reco_ray.corpus.stage import write_rejected
from reco_ray.cosegmentation.bank import SAMPLE, ReferenceBank
from reco_ray.cosegmentation.sample import open_sample, sample_of_images
from reco_ray.distributed.parts import Report, Worker
from reco_ray.distributed.pool import stage_pool
from reco_ray.distributed.timing import write_summary
from reco_ray.errors import UnreadableError
from reco_ray.files import artifacts, storage
from reco_ray.files.replacing import clear_outdated, print_status
from reco_ray.models.dense import DenseModels
from reco_ray.models.description import describe_dense_models
from reco_ray.outcome import Outcome
from reco_ray.segmentation.image_parts import (
    IMAGES,
    LEAVING,
    is_own,
    pending_parts,
    plan_parts,
    read_images,
    take_out,
)
from reco_ray.segmentation.masks import REGIONS_SCHEMA, Region, encode_png, mask_file, overlay_file, regions
from reco_ray.segmentation.names import add_names
from reco_ray.segmentation.overlay import overlay, with_legend
from reco_ray.segmentation.palette import palette
from reco_ray.segmentation.segment import segment
from reco_ray.segmentation.targets import has_background, label_names, targets_of


def segment_images(
    references: str, images: str, out: str, settings: Settings, renew: bool = False
) -> Outcome:
    """Segments all images of a source with a ReferenceBank, on the connected Ray cluster.

    Args:
        references: URI of the ReferenceBank.
        images: URI of the source.
        out: URI of the masks artifact.
        settings: of the run.
        renew: update masks of the same references and settings to the source; replace those of others.

    Raises:
        RecoError: a bank of other models, no images, none usable, or unwritable output.
    """
    dense = describe_dense_models(settings.models, settings.seed)
    bank = ReferenceBank.open(references, dense.fingerprint)
    listing = list_images(images, image_column=settings.image_column)
    writer = artifacts.ArtifactWriter(
        out,
        MasksContent,
        {
            "references": bank.uri,
            "references_digest": bank.digest,
            "models": dense.fingerprint,
            "images": storage.absolute(images),
            "listing": listing.fingerprint,
            "image_column": settings.image_column,
            **settings.named("segment"),
        },
    )
    if renew:
        _renew(writer)
    if manifest := writer.finished():
        return Outcome("segment", writer.uri, manifest, new=False)
    table = add_names(listing.table, listing.root)
    recorded = read_images(writer.uri)
    planned, leaving = plan_parts(table, recorded, settings.segment.shard_size)
    if leaving is not None:
        take_out(writer.uri, leaving)
    storage.write_table(storage.join(writer.uri, IMAGES), planned)
    pending = pending_parts(writer.uri, planned)
    done = table.num_rows - sum(shard.num_rows for shard in pending.values())
    if renew and recorded is not None:
        gone = 0 if leaving is None else pc.sum(leaving[LEAVING]).as_py()
        print_status(
            "segment", f"{table.num_rows - done:,} to do, {gone:,} gone or changed since, {done:,} kept"
        )
    load = whole_image_loader(dense.transform, dense.stride, settings.segment)
    sample = _sample(writer.uri, table, load, settings, begun=done > 0)
    worker = SegmentWorker(settings, bank.uri, writer.uri, sample)
    device, placement = settings.models.device, settings.placement.segment
    with stage_pool("segment", device, placement, table.num_rows, done) as pool:
        pool.run(pending, load, worker)
        run = {"images": table.num_rows - done, **pool.statistics()}
    rejected = _rejected(writer.uri)
    counts = {
        "images": listing.table.num_rows,
        "segmented": table.num_rows - len(rejected),
        "rejected": len(rejected),
    }
    if table.num_rows < listing.table.num_rows:  # a list may name an image several times
        counts["listed again"] = listing.table.num_rows - table.num_rows
    if not counts["segmented"]:
        raise UnreadableError(
            f"{images}: none of the {len(rejected)} images can be used (the first: {rejected[0]['reason']})"
        )
    write_summary(writer.uri, "segment", counts, run, settings, {"left_out": listing.left_out})
    labels = label_names(bank, settings.segment)
    colours = palette(len(labels), background=has_background(bank, settings.segment)).tolist()
    content = MasksContent(labels=labels, palette=colours, references=bank.uri)
    return Outcome("segment", writer.uri, writer.commit(counts, content))


def _sample(out: str, images: pa.Table, load: ImageLoader, settings: Settings, *, begun: bool) -> str | None:
    """URI of the feature sample that the images are scored with; None: that of the corpus.

    Once there are masks, later ones are scored as they were, so that masks of a set of images that grows or shrinks
    stay comparable.
    """
    uri = storage.join(out, SAMPLE)
    if begun:
        return uri if settings.segment.calibrate and storage.exists(uri) else None
    storage.remove(uri)  # of a run that ended before its first mask; the images may be others now
    return sample_of_images(uri, images, load, settings, settings.placement.segment)


def _renew(writer: artifacts.ArtifactWriter) -> None:
    """Keeps masks if only the images have changed; clears those of other references or settings."""
    stored = writer.stored()
    if stored is None or stored == writer.made_from:
        return
    of_images = {"images": None, "listing": None}
    if {**stored, **of_images} == {**writer.made_from, **of_images} and read_images(writer.uri) is not None:
        writer.begin()
    else:
        clear_outdated(writer, "segment", is_own(writer.uri), last=IMAGES)


class SegmentWorker(Worker[Report]):
    """Segments the loaded rows of a shard and commits their masks."""

    report = Report

    def __init__(self, settings: Settings, bank: str, out: str, sample: str | None) -> None:
        self._all_settings, self._settings, self._bank, self._out = settings, settings.segment, bank, out
        self._sample = sample

    def set_up(self, device: str) -> None:
        """Loads the dense models and the references."""
        settings = self._all_settings
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        bank = ReferenceBank.open(self._bank, self._models.fingerprint)
        sample = None if self._sample is None else open_sample(self._sample)
        self._targets = targets_of(bank, settings.segment, sample).to(device)
        self._names = label_names(bank, settings.segment)
        self._colours = palette(len(self._names), background=self._targets.background)
        self._device = device

    def work(self, name: str, rows: pa.Table) -> Report:
        """Writes masks, overlays and rejected rows, and last the table of regions, which commits the shard."""
        found: list[dict[str, object]] = []
        usable = rows.filter(rows["pixels"].is_valid())
        for row in range(usable.num_rows):
            found += self._segment_one(pixels_of(usable, row), usable.slice(row, 1).to_pylist()[0])
        write_rejected(self._out, name, rows)
        table = pa.Table.from_pylist(found, schema=REGIONS_SCHEMA)
        storage.write_table(storage.join(self._out, "regions", f"{name}.parquet"), table)
        return Report(rows.num_rows)

    def _segment_one(self, pixels: np.ndarray, row: dict[str, Any]) -> list[dict[str, object]]:
        batch = torch.from_numpy(pixels.copy())[None].to(self._device)
        size = (row["height"], row["width"])
        result = segment(self._models, self._targets, batch, [size], self._settings)[0]
        labels, scores = result.labels.cpu().numpy(), result.scores.cpu().numpy()
        mask = mask_file(row["name"])
        storage.write_bytes(storage.join(self._out, mask), encode_png(labels, self._colours))
        found = regions(labels, scores)
        if self._settings.overlays:
            self._write_overlay(row["name"], pixels, labels, found)
        shared = {"mask": mask, **{key: row[key] for key in ("uri", "name", "width", "height")}}
        return [{**shared, "concept": self._names[region["label"]], **region} for region in found]

    def _write_overlay(self, name: str, pixels: np.ndarray, labels: np.ndarray, found: list[Region]) -> None:
        height, width = pixels.shape[:2]
        rows = np.arange(height) * labels.shape[0] // height
        cols = np.arange(width) * labels.shape[1] // width
        picture = overlay(pixels, labels[rows][:, cols], self._colours)
        legend = [
            (self._names[f["label"]], tuple(self._colours[f["label"]].tolist()), f["area"] / labels.size)
            for f in sorted(found, key=lambda f: -f["area"])
        ]
        storage.write_bytes(storage.join(self._out, overlay_file(name)), with_legend(picture, legend))


def _rejected(out: str) -> list[dict[str, str]]:
    folder = storage.join(out, "rejected")
    return storage.read_table(folder).to_pylist() if storage.list_names(folder, ".parquet") else []
