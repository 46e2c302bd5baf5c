"""The segment stage on Ray: images in, masks out, shard by shard, resumable."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reco_ray import storage
from reco_ray.cluster import count_readers, plan_workers
from reco_ray.config import Settings
from reco_ray.console import progress
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.corpus.read import list_images
from reco_ray.corpus.stage import write_rejected
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.errors import RecoError
from reco_ray.meter import Meter, write_summary
from reco_ray.models.dense import DenseModels
from reco_ray.models.image import ImageTransform
from reco_ray.segmentation.masks import KIND, REGIONS_SCHEMA, encode_png, mask_file, regions
from reco_ray.segmentation.names import add_names
from reco_ray.segmentation.overlay import overlay, with_legend
from reco_ray.segmentation.palette import palette
from reco_ray.segmentation.segment import segment
from reco_ray.segmentation.targets import has_background, label_names, targets_of
from reco_ray.shards import cut, run_shards


def segment_images(
    references: str, images: str, out: str, settings: Settings
) -> tuple[storage.Manifest, bool]:
    """Segments every image of a source with a ReferenceBank, on the connected Ray cluster.

    Returns:
        The manifest, and whether there was anything to do.

    Raises:
        RecoError: a bank of other models, no images, none usable, unwritable output.
    """
    dense = DenseModels.load(settings.models, seed=settings.seed)
    bank = ReferenceBank.open(references, dense.fingerprint)
    listing = list_images(images, image_column=settings.image_column)
    writer = storage.ArtifactWriter(
        out,
        KIND,
        {
            "references": bank.uri,
            "references_made_at": bank.made_at,
            "models": dense.fingerprint,
            "images": storage.absolute(images),
            "listing": listing.fingerprint,
            "image_column": settings.image_column,
            **settings.named("segment"),
        },
    )
    if manifest := writer.finished():
        return manifest, False
    table = add_names(listing.table, listing.root)
    shards = cut(table, settings.segment.shard_size)
    committed = set(storage.list_names(storage.join(writer.uri, "regions"), ".parquet"))
    pending = {name: shard for name, shard in shards.items() if f"{name}.parquet" not in committed}
    done = table.num_rows - sum(shard.num_rows for shard in pending.values())
    workers = plan_workers(settings.models.device, max(1, len(pending)), settings.placement.segment)
    kwargs = {"settings": settings, "bank_uri": bank.uri, "out": writer.uri}
    load = LoadWhole(dense.encoder.transform, settings, dense.encoder.stride)
    meter = Meter()
    with progress("segment", table.num_rows, done) as advance:
        for shard in run_shards(pending, load, SegmentWorker, kwargs, workers, meter):
            advance(shard["images"])
    rejected = _rejected(writer.uri)
    counts = {
        "images": listing.table.num_rows,
        "segmented": table.num_rows - len(rejected),
        "rejected": len(rejected),
    }
    if table.num_rows < listing.table.num_rows:  # a list may name an image several times
        counts["listed again"] = listing.table.num_rows - table.num_rows
    if not counts["segmented"]:
        raise RecoError(
            f"{images}: none of the {len(rejected)} images can be used (the first: {rejected[0]['reason']})"
        )
    run = {"images": table.num_rows - done, **meter.run(workers, count_readers(workers))}
    write_summary(writer.uri, "segment", counts, run, settings, {"left_out": listing.left_out})
    labels = label_names(bank, settings.segment)
    colours = palette(len(labels), background=has_background(bank, settings.segment)).tolist()
    return writer.commit(counts, {"labels": labels, "palette": colours, "references": bank.uri}), True


class LoadWhole:
    """A shard's images, whole, at the size the models see."""

    def __init__(self, transform: ImageTransform, settings: Settings, stride: int) -> None:
        self._transform, self._stride = transform, stride
        self._size, self._max_pixels = settings.segment.image_size, settings.segment.max_pixels

    def __call__(self, shard: pa.Table) -> pa.Table:
        loaded = load_images(
            shard["uri"].to_pylist(),
            lambda image: self._transform.fit(image, self._size, self._stride),
            max_pixels=self._max_pixels,
            short_side=self._size,
        )
        return loaded.append_column("name", shard["name"])


class SegmentWorker:
    """Segments the loaded rows of a shard and commits their masks."""

    def __init__(self, *, threads: int, device: str, settings: Settings, bank_uri: str, out: str) -> None:
        torch.set_num_threads(threads)
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        self._bank = ReferenceBank.open(bank_uri, self._models.fingerprint)
        self._targets = targets_of(self._bank, settings.segment).to(device)
        self._names = label_names(self._bank, settings.segment)
        self._colours = palette(len(self._names), background=self._targets.background)
        self._settings, self._device, self._out = settings.segment, device, out

    def __call__(self, name: str, rows: pa.Table) -> dict[str, Any]:
        found: list[dict[str, object]] = []
        usable = rows.filter(rows["pixels"].is_valid())
        for row in range(usable.num_rows):
            found += self._segment_one(pixels_of(usable, row), usable.slice(row, 1).to_pylist()[0])
        write_rejected(self._out, name, rows)
        # Last: its presence says that the shard is done.
        table = pa.Table.from_pylist(found, schema=REGIONS_SCHEMA)
        storage.write_table(storage.join(self._out, "regions", f"{name}.parquet"), table)
        return {"images": rows.num_rows}

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
        return [{**shared, "concept": self._names[int(str(region["label"]))], **region} for region in found]

    def _write_overlay(
        self, name: str, pixels: np.ndarray, labels: np.ndarray, found: list[dict[str, Any]]
    ) -> None:
        height, width = pixels.shape[:2]
        rows = np.arange(height) * labels.shape[0] // height
        cols = np.arange(width) * labels.shape[1] // width
        picture = overlay(pixels, labels[rows][:, cols], self._colours)
        legend = [
            (self._names[f["label"]], tuple(self._colours[f["label"]].tolist()), f["area"] / labels.size)
            for f in sorted(found, key=lambda f: -f["area"])
        ]
        storage.write_bytes(storage.join(self._out, "overlays", f"{name}.jpg"), with_legend(picture, legend))


def _rejected(out: str) -> list[dict[str, str]]:
    folder = storage.join(out, "rejected")
    return storage.read_table(folder).to_pylist() if storage.list_names(folder, ".parquet") else []
