"""The label stage on Ray: images in, pseudo-labels of one or many vocabularies out, resumable shard by shard.

Every image is read, decoded and encoded once, however many vocabularies label it. Two kinds of artifact:

- frames: `frames/<shard>.parquet`, FRAMES_SCHEMA, the images at the size they are trained at; `rejected/`
- pseudo-labels, one a vocabulary: `labels/<shard>.parquet`, LABELS_SCHEMA, its rows those of the frames' shard; in
  the file's metadata `pixels`, how many have each label id, as a JSON list
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from reco_ray import storage
from reco_ray.cluster import plan_workers
from reco_ray.config import Settings
from reco_ray.console import progress
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.corpus.read import list_images
from reco_ray.corpus.stage import REJECTED_SCHEMA
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.errors import RecoError
from reco_ray.models.dense import DenseModels, EncodedOnce
from reco_ray.models.image import ImageTransform
from reco_ray.segmentation.segment import segment
from reco_ray.segmentation.targets import has_background, label_names, targets_of
from reco_ray.shards import cut, run_shards

FRAMES_KIND, LABELS_KIND = "frames", "pseudo-labels"
IGNORE = 255  # in label maps: counts for nothing
MAX_LABELS = 255

# frame: JPEG of the upright image, short side near train.image_size. width, height: of the original, pixels.
FRAMES_SCHEMA = pa.schema(
    [("uri", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("frame", pa.binary())]
)
# label: 8-bit PNG of the frame's size, label ids or IGNORE. score: 8-bit PNG, the winner's score x 255.
LABELS_SCHEMA = pa.schema([("uri", pa.string()), ("label", pa.binary()), ("score", pa.binary())])


@dataclass(frozen=True)
class Set:
    """One vocabulary's pseudo-labels to be made. bank: URI of its references. out: URI of the artifact."""

    bank: str
    out: str


def label_images(
    sets: dict[str, Set], images: str, frames: str, settings: Settings
) -> dict[str, tuple[storage.Manifest, bool]]:
    """Labels every image of a source with each of several ReferenceBanks, on the connected Ray cluster.

    Args:
        sets: by name. frames: URI of the frames artifact, which they share.

    Returns:
        Per set its manifest, and whether there was anything to do.

    Raises:
        RecoError: a bank of other models, more than 255 labels, no usable images, unwritable output.
    """
    # Workers may run in another folder than this process.
    sets = {n: Set(storage.absolute(one.bank), storage.absolute(one.out)) for n, one in sets.items()}
    dense = DenseModels.load(settings.models, seed=settings.seed)
    listing = list_images(images)
    source = {"images": storage.absolute(images), "listing": listing.fingerprint}
    shape = {"image_size": settings.train.image_size, "shard_size": settings.segment.shard_size}
    frames_writer = storage.ArtifactWriter(frames, FRAMES_KIND, {**source, **shape})
    banks = {name: ReferenceBank.open(one.bank, dense.fingerprint) for name, one in sets.items()}
    writers = {
        name: storage.ArtifactWriter(
            one.out, LABELS_KIND, {**source, **shape, **_made_from(banks[name], settings)}
        )
        for name, one in sets.items()
    }
    for name, bank in banks.items():
        if len(label_names(bank, settings.segment)) > MAX_LABELS:
            raise RecoError(f"{name}: pseudo-labels hold at most {MAX_LABELS} labels: split the vocabulary")
    frames_writer.finished()
    finished = {name: writer.finished() for name, writer in writers.items()}
    pending_sets = {name: sets[name] for name, manifest in finished.items() if manifest is None}
    if pending_sets:
        _run(pending_sets, frames_writer.uri, listing.table, dense, settings)
    total = listing.table.num_rows
    if not storage.exists(storage.join(frames_writer.uri, storage.MANIFEST)):
        footers = storage.read_footers(storage.join(frames_writer.uri, "frames"))
        kept = sum(footer.num_rows for footer in footers.values())
        if not kept:
            raise RecoError(f"{images}: none of the {total} images can be used")
        frames_writer.commit({"images": total, "frames": kept, "rejected": total - kept})
    return {
        name: (manifest, False)
        if (manifest := finished[name])
        else (_commit(writer, banks[name], frames_writer.uri, settings), True)
        for name, writer in writers.items()
    }


def _made_from(bank: ReferenceBank, settings: Settings) -> dict[str, Any]:
    return {
        "references": bank.uri,
        "references_made_at": bank.made_at,
        "min_score": settings.train.min_score,
        **settings.segment.model_dump(exclude={"image_size", "overlays", "shard_size"}),
    }


def _run(
    sets: dict[str, Set], frames: str, listing: pa.Table, dense: DenseModels, settings: Settings
) -> None:
    folders = [storage.join(frames, "frames"), *(storage.join(one.out, "labels") for one in sets.values())]
    there = [set(storage.list_names(folder, ".parquet")) for folder in folders]
    shards = cut(listing, settings.segment.shard_size)
    pending = {n: shard for n, shard in shards.items() if any(f"{n}.parquet" not in names for names in there)}
    done = listing.num_rows - sum(shard.num_rows for shard in pending.values())
    load = LoadFrames(dense.encoder.transform, settings, dense.encoder.stride)
    workers = plan_workers(settings.models.device, max(1, len(pending)), settings.placement.label)
    kwargs = {"settings": settings, "sets": sets, "frames": frames}
    with progress("label", listing.num_rows, done) as advance:
        for shard in run_shards(pending, load, LabelWorker, kwargs, workers):
            advance(shard["images"])


def _commit(
    writer: storage.ArtifactWriter, bank: ReferenceBank, frames: str, settings: Settings
) -> storage.Manifest:
    names = label_names(bank, settings.segment)
    footers = storage.read_footers(storage.join(writer.uri, "labels"))
    pixels = sum(
        (np.array(json.loads(each.metadata[b"pixels"])) for each in footers.values()), np.zeros(256, int)
    )
    content = {
        "labels": names,
        "background": has_background(bank, settings.segment),
        "vocabulary": bank.vocabulary.model_dump(),
        "references": bank.uri,
        "frames": frames,
        "pixels": dict(zip(names, pixels.tolist(), strict=False)),
    }
    images = sum(footer.num_rows for footer in footers.values())
    counts = {"images": images, "labels": len(names), "ignored_pixels": int(pixels[IGNORE])}
    return writer.commit(counts, content)


class LoadFrames:
    """A shard's images, whole, at the size they are labelled at."""

    def __init__(self, transform: ImageTransform, settings: Settings, stride: int) -> None:
        self._transform, self._stride = transform, stride
        self._size, self._max_pixels = settings.segment.image_size, settings.segment.max_pixels

    def __call__(self, shard: pa.Table) -> pa.Table:
        return load_images(
            shard["uri"].to_pylist(),
            lambda image: self._transform.fit(image, self._size, self._stride),
            max_pixels=self._max_pixels,
            short_side=self._size,
            drop_duplicates=False,
        )


class LabelWorker:
    """Labels the loaded rows of a shard for every vocabulary, and commits frames and labels."""

    def __init__(
        self, *, threads: int, device: str, settings: Settings, sets: dict[str, Set], frames: str
    ) -> None:
        torch.set_num_threads(threads)
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        self._settings, self._device, self._sets, self._frames = settings, device, sets, frames
        self._targets = {
            name: targets_of(ReferenceBank.open(one.bank, self._models.fingerprint), settings.segment).to(
                device
            )
            for name, one in sets.items()
        }

    def __call__(self, name: str, rows: pa.Table) -> dict[str, Any]:
        usable = rows.filter(rows["pixels"].is_valid())
        frames: list[dict[str, Any]] = []
        labels: dict[str, list[dict[str, Any]]] = {key: [] for key in self._sets}
        counts = {key: np.zeros(256, np.int64) for key in self._sets}
        for row in range(usable.num_rows):
            entry = usable.slice(row, 1).select(["uri", "width", "height"]).to_pylist()[0]
            pixels = pixels_of(usable, row)
            picture = _shrunk(pixels, self._settings.train.image_size)
            frames.append({**entry, "frame": _encoded(picture, "JPEG", quality=95, subsampling=0)})
            models, batch = EncodedOnce(self._models), torch.from_numpy(pixels.copy())[None].to(self._device)
            for key, found in labels.items():
                ids, scores = self._label(models, key, batch, picture.size)
                counts[key] += np.bincount(ids.reshape(-1), minlength=256)
                maps = {"label": ids, "score": scores}
                found.append(
                    {"uri": entry["uri"], **{k: _encoded(Image.fromarray(v), "PNG") for k, v in maps.items()}}
                )
        for key, found in labels.items():
            schema = LABELS_SCHEMA.with_metadata({"pixels": json.dumps(counts[key].tolist())})
            table = pa.Table.from_pylist(found, schema=schema)
            storage.write_table(storage.join(self._sets[key].out, "labels", f"{name}.parquet"), table)
        rejected = rows.filter(rows["reason"].is_valid()).select(REJECTED_SCHEMA.names)
        if rejected.num_rows:
            storage.write_table(storage.join(self._frames, "rejected", f"{name}.parquet"), rejected)
        table = pa.Table.from_pylist(frames, schema=FRAMES_SCHEMA)
        storage.write_table(storage.join(self._frames, "frames", f"{name}.parquet"), table)
        return {"images": rows.num_rows}

    def _label(
        self, models: EncodedOnce, key: str, batch: torch.Tensor, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (H, W): label ids or IGNORE, and scores x 255."""
        width, height = size
        result = segment(models, self._targets[key], batch, [(height, width)], self._settings.segment)[0]
        unsure = result.scores < self._settings.train.min_score
        labels = result.labels.masked_fill(unsure, IGNORE).to(torch.uint8).cpu().numpy()
        scores = (result.scores.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return labels, scores


def decode(data: bytes) -> np.ndarray:
    """An encoded frame or label map -> uint8 (H, W, 3) or (H, W)."""
    return np.asarray(Image.open(io.BytesIO(data)))


def _shrunk(pixels: np.ndarray, short_side: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
