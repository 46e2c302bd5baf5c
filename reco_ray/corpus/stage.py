"""The embed stage on Ray: a listing, cut into shards, read, decoded and embedded as a stream.

Every shard is committed by itself, so a killed run goes on where it stopped. The embeddings artifact holds:

- `embeddings/<shard>.parquet`: EMBEDDINGS_SCHEMA, one row an image with content not seen before
- `rejected/<shard>.parquet`: `uri`, `reason`
- `duplicates/<shard>.parquet`: `uri`, `duplicate_of`

and embeddings + rejected + duplicates = images listed, always.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from reco_ray import storage
from reco_ray.cluster import plan_workers
from reco_ray.config import Settings
from reco_ray.console import progress
from reco_ray.corpus.embed import embed_pixels
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.corpus.read import list_images
from reco_ray.errors import RecoError
from reco_ray.models import load_language_image_model
from reco_ray.shards import cut, run_shards

KIND = "embeddings"
REJECTED_SCHEMA = pa.schema([("uri", pa.string()), ("reason", pa.string())])
DUPLICATES_SCHEMA = pa.schema([("uri", pa.string()), ("duplicate_of", pa.string())])


def embeddings_schema(dim: int) -> pa.Schema:
    """The columns of the artifact.

    image_id: sha256 of the bytes, hex. width, height: of the upright original, pixels. embedding: a unit
    vector.
    """
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("uri", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("embedding", pa.list_(pa.float16(), dim)),
        ]
    )


def embed_corpus(corpus: str, out: str, settings: Settings) -> tuple[storage.Manifest, bool]:
    """Embeds every image of `corpus` once, on the connected Ray cluster.

    Returns:
        The manifest, and whether there was anything to do.

    Raises:
        RecoError: no images, none usable, unwritable output, or an output that holds something else.
    """
    listing = list_images(corpus)
    model = load_language_image_model(
        settings.models.retrieval, weights=settings.models.weights, seed=settings.seed
    )
    writer = storage.ArtifactWriter(
        out,
        KIND,
        {
            "corpus": storage.absolute(corpus),
            "listing": listing.fingerprint,
            "model": model.fingerprint,
            "shard_size": settings.embed.shard_size,
            "max_pixels": settings.embed.max_pixels,
        },
    )
    if manifest := writer.finished():
        return manifest, False
    shards = cut(listing.table, settings.embed.shard_size)
    committed = set(storage.list_names(storage.join(writer.uri, KIND), ".parquet"))
    pending = {name: shard for name, shard in shards.items() if f"{name}.parquet" not in committed}
    done = listing.table.num_rows - sum(shard.num_rows for shard in pending.values())
    workers = plan_workers(settings.models.device, max(1, len(pending)), settings.placement.embed)
    with progress("embed", listing.table.num_rows, done) as advance:
        for shard in run_shards(
            pending,
            LoadCrops(model.transform.crop, settings.embed.max_pixels, model.transform.size),
            EmbedWorker,
            {
                "models": settings.models,
                "seed": settings.seed,
                "batch_size": settings.embed.batch_size,
                "out": writer.uri,
            },
            workers,
        ):
            advance(shard["images"])
    _drop_duplicates_across_shards(writer.uri)
    counts = {"images": listing.table.num_rows, **_count(writer.uri)}
    if counts["images"] != counts["embedded"] + counts["rejected"] + counts["duplicates"]:
        raise RecoError(
            f"{writer.uri}: the rows do not add up to the corpus ({counts}): delete it and run again"
        )
    if not counts["embedded"]:
        reason = storage.read_table(storage.join(writer.uri, "rejected"))["reason"][0].as_py()
        raise RecoError(f"{corpus}: none of the {counts['images']} images can be used (the first: {reason})")
    return writer.commit(counts, {"dim": model.embedding_dim, "model": model.fingerprint}), True


class LoadCrops:
    """A shard's rows -> decoded crops; a class, so that Ray ships three values and no closure."""

    def __init__(self, to_pixels: Callable[..., np.ndarray], max_pixels: int, short_side: int) -> None:
        self._load = partial(
            load_images,
            to_pixels=to_pixels,
            max_pixels=max_pixels,
            short_side=short_side,
            drop_duplicates=True,
        )

    def __call__(self, shard: pa.Table) -> pa.Table:
        return self._load(shard["uri"].to_pylist())


class EmbedWorker:
    """Embeds the loaded rows of a shard and commits them."""

    def __init__(
        self, *, threads: int, device: str, models: Any, seed: int, batch_size: int, out: str
    ) -> None:
        torch.set_num_threads(threads)
        self._model = load_language_image_model(
            models.retrieval, weights=models.weights, device=device, seed=seed, precision=models.precision
        )
        self._batch_size, self._out = batch_size, out

    def __call__(self, name: str, rows: pa.Table) -> dict[str, Any]:
        usable = rows.filter(rows["pixels"].is_valid())
        pixels = [pixels_of(usable, row) for row in range(usable.num_rows)]
        vectors = embed_pixels(self._model, pixels, self._batch_size)
        rejected = rows.filter(rows["reason"].is_valid()).select(REJECTED_SCHEMA.names)
        duplicates = rows.filter(rows["duplicate_of"].is_valid()).select(DUPLICATES_SCHEMA.names)
        file = f"{name}.parquet"
        if rejected.num_rows:
            storage.write_table(storage.join(self._out, "rejected", file), rejected)
        if duplicates.num_rows:
            storage.write_table(storage.join(self._out, "duplicates", file), duplicates)
        # Last: its presence says that the shard is done.
        dim = vectors.shape[1]
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float16()), dim)
        table = usable.select(["image_id", "uri", "width", "height"]).append_column("embedding", embedding)
        storage.write_table(storage.join(self._out, KIND, file), table.cast(embeddings_schema(dim)))
        return {"shard": name, "images": rows.num_rows}


def _drop_duplicates_across_shards(out: str) -> None:
    """Keeps the first of each content: copies lie in two shards where sizes are unknown or a shard ends."""
    seen: dict[str, str] = {}
    for name in storage.list_names(storage.join(out, KIND), ".parquet"):
        file = storage.join(out, KIND, name)
        ids = storage.read_table(file, ["image_id", "uri"]).to_pylist()
        first = {row["uri"]: seen[row["image_id"]] for row in ids if row["image_id"] in seen}
        if first:
            # The duplicates before the rows go: killed in between, the next run does the same again.
            _point_at_first(storage.join(out, "duplicates", name), first)
            rows = [{"uri": uri, "duplicate_of": kept} for uri, kept in first.items()]
            storage.write_table(
                storage.join(out, "duplicates", f"across-{name}"),
                pa.Table.from_pylist(rows, DUPLICATES_SCHEMA),
            )
            new = pa.array([row["image_id"] not in seen for row in ids])
            storage.write_table(file, storage.read_table(file).filter(new))
        for row in ids:
            seen.setdefault(row["image_id"], row["uri"])


def _point_at_first(file: str, first: dict[str, str]) -> None:
    """A shard's own duplicates of images that are themselves dropped become duplicates of what is kept."""
    if storage.exists(file):
        rows = storage.read_table(file).to_pylist()
        rows = [{**row, "duplicate_of": first.get(row["duplicate_of"], row["duplicate_of"])} for row in rows]
        storage.write_table(file, pa.Table.from_pylist(rows, DUPLICATES_SCHEMA))


def _count(out: str) -> dict[str, int]:
    def rows(folder: str) -> int:
        total = 0
        for name in storage.list_names(storage.join(out, folder), ".parquet"):
            filesystem, path = storage.resolve(storage.join(out, folder, name))
            total += pq.read_metadata(path, filesystem=filesystem).num_rows
        return total

    return {"embedded": rows(KIND), "rejected": rows("rejected"), "duplicates": rows("duplicates")}
