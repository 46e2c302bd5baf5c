"""The embed stage on Ray: a listing is cut into shards, which are read, decoded and embedded as a stream.

Each part of a shard is committed separately, so a killed run resumes. The artifact contains:

- `listing/`: the listing of the source, cut into shards (`generations.py`)
- `embeddings/<part>.parquet`: `embeddings_schema`, one row per image of new content
- `rejected/<part>.parquet`: `uri`, `reason`
- `duplicates/<part>.parquet`: `uri`, `duplicate_of`
- `summary.json`: counts, reasons, rates

where embeddings + rejected + duplicates = images listed. Parts of shards from `shards` of the manifest on
belong to a generation that is still being added, and are omitted by `embedding_files`. Images removed from the source
are removed from the tables by the next `reco-ray run` (`update.py`).
"""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.config import ModelSettings, Settings
from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus import web
from reco_ray.corpus.budget import RejectBudget
from reco_ray.corpus.embed import embed_pixels
from reco_ray.corpus.finish import (
    DUPLICATES_SCHEMA,
    IMAGES_KEY,
    count_reasons,
    finish_embeddings,
    rejected_so_far,
)
from reco_ray.corpus.generations import (
    Generation,
    gone_containers,
    pending_units,
    read_generations,
    read_recorded,
    record_generation,
)
from reco_ray.corpus.gone import drop_gone
from reco_ray.corpus.listing import Listing, list_files
from reco_ray.corpus.load import pixels_of
from reco_ray.corpus.load_parts import LoadParts
from reco_ray.corpus.update import added_rows, removed_rows, update
from reco_ray.distributed import stage_metrics
from reco_ray.distributed.parts import Report, Worker
from reco_ray.distributed.pool import stage_pool
from reco_ray.distributed.timing import write_summary
from reco_ray.distributed.workers import count_readers, plan_workers
from reco_ray.errors import OtherModelError, UnfinishedError, UnreadableError
from reco_ray.files import artifacts, storage
from reco_ray.models.dense import load_retrieval_model
from reco_ray.models.description import ModelDescription, describe_retrieval_model
from reco_ray.outcome import Outcome
from reco_ray.presentation.console import waiting

REJECTED_SCHEMA = pa.schema([("uri", pa.string()), ("reason", pa.string())])


def write_rejected(out: str, name: str, rows: pa.Table) -> pa.Table:
    """Writes the rows of a loaded part that have a reason to `rejected/`, if any, and returns them."""
    rejected = rows.select(REJECTED_SCHEMA.names).filter(rows["reason"].is_valid())
    if rejected.num_rows:
        storage.write_table(storage.join(out, "rejected", f"{name}.parquet"), rejected)
    return rejected


def embeddings_schema(dim: int) -> pa.Schema:
    """The columns of the artifact.

    image_id: SHA-256 of the bytes, hex.
    width, height: of the original in its upright orientation, pixels.
    embedding: unit vector.
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


def embed_corpus(
    corpus: str, out: str, settings: Settings, follow: bool = False, renew: bool = False
) -> Outcome:
    """Embeds each image of `corpus` once, on the connected Ray cluster.

    Args:
        corpus: URI of the source.
        out: URI of the artifact.
        settings: of the run.
        follow: also embed images that were added to the source since; remove none.
        renew: as `follow`, also remove images that the source no longer has, and replace embeddings of other models or
            settings.

    Raises:
        RecoError: no images, none usable, too many rejected, a changed source, a store that does not answer, or an
            output that is not writable or has other content.
    """
    out = storage.absolute(out)
    begun = storage.exists(storage.join(out, artifacts.STARTED))
    generations = read_generations(out) if begun else []
    found = _list(corpus, settings.image_column) if renew or not generations else None
    model = describe_retrieval_model(settings.models, settings.seed)
    writer = artifacts.ArtifactWriter(
        out,
        EmbeddingsContent,
        {
            "corpus": storage.absolute(corpus),
            "image_column": settings.image_column,
            "model": model.fingerprint,
            "embed.shard_size": settings.embed.shard_size,
            "embed.max_pixels": settings.embed.max_pixels,
            "embed.frames_per_second": settings.embed.frames_per_second,
        },
    )
    if renew and found is not None:
        generations = update(writer, found, generations, settings.embed.shard_size)
    manifest = writer.finished()
    unchanged = Outcome("embed", out, manifest, new=False)
    went_on = bool(generations)
    if found is not None and not generations:
        generations = [record_generation(out, found, found.table, [], settings.embed.shard_size)]
    elif manifest and manifest.content.generation == len(generations):
        if renew:
            return unchanged
        went_on = False
        found = _list(corpus, settings.image_column)
        if found.fingerprint == generations[-1].source:
            return unchanged
        recorded = read_recorded(out, generations)
        new, gone = added_rows(found, recorded), removed_rows(found, recorded)
        if not follow:
            advice = (
                "--follow embeds what is new" if new.num_rows else "--follow keeps the rows of what is gone"
            )
            raise OtherModelError(
                f"{out}: {corpus} has changed since ({new.num_rows:,} new, {gone.num_rows:,} gone): {advice}, "
                "another --out embeds it anew"
            )
        if not new.num_rows:
            return unchanged
        generations.append(record_generation(out, found, new, generations, settings.embed.shard_size))
    manifest = _embed_pending(corpus, writer, generations, model, settings, manifest)
    if follow and went_on:  # the begun generation is finished; the source may have grown since
        manifest = embed_corpus(corpus, out, settings, follow=True).manifest
    return Outcome("embed", out, manifest)


def _list(corpus: str, image_column: str | None) -> Listing:
    with waiting(f"listing {corpus}"):
        return list_files(corpus, image_column)


def _embed_pending(
    corpus: str,
    writer: artifacts.ArtifactWriter[EmbeddingsContent],
    generations: list[Generation],
    model: ModelDescription,
    settings: Settings,
    manifest: artifacts.Manifest[EmbeddingsContent] | None,
) -> artifacts.Manifest[EmbeddingsContent]:
    """Embeds the parts that are not committed, then finishes and commits the artifact."""
    out, options = writer.uri, settings.embed
    known = [generation.images for generation in generations]
    total = None if None in known else sum(images or 0 for images in known)
    without = gone_containers(out, generations)
    if manifest is None:  # else nothing was removed since
        drop_gone(out, generations)
    committed = _committed(out)
    units = pending_units(generations, committed, options.shard_size, without)
    done = _images_done(total, units, generations)
    budget = RejectBudget(options.max_rejected, total, rejected_so_far(out)[0] if committed else Counter())
    parts = sum(unit.num_rows for unit in units)
    most = max(1, parts) if total is not None else None
    workers = plan_workers(settings.models.device, most, settings.placement.embed)
    readers, loaders, requests_per_host = count_readers(workers), None, 1
    if any(generation.web for generation in generations):
        loaders, requests_per_host = web.shares(min(parts, readers))
    load = LoadParts(
        out,
        generations,
        model.transform.crop,
        short_side=model.transform.size,
        max_pixels=options.max_pixels,
        part_size=options.shard_size,
        frames_per_second=options.frames_per_second,
        image_column=settings.image_column,
        requests_per_host=requests_per_host,
    )
    worker = EmbedWorker(settings.models, settings.seed, options.batch_size, out, model)
    images = 0
    with stage_pool("embed", settings.models.device, settings.placement.embed, total, done) as pool:
        for report in pool.parts(units, load, worker, workers, loaders or readers, loaders):
            images += report.items
            stage_metrics.images("embed", report.items, report.duplicates, report.rejected)
            stage_metrics.rate("embed", images / pool.meter.seconds)
            budget.add(report.items, report.rejected, corpus, out)
    if pending_units(generations, _committed(out), options.shard_size, without):
        raise UnfinishedError(f"{out}: not all of {corpus} was committed: run the command again")
    first_new = manifest.content.shards if manifest else 0
    counts = finish_embeddings(out, first_new)
    numbers = {
        "images": counts.images,
        "embedded": counts.embedded,
        "rejected": counts.rejected,
        "duplicates": counts.duplicates,
    }
    listed = counts.images if total is None or counts.containers else total
    if not listed == counts.images == counts.embedded + counts.rejected + counts.duplicates:
        raise UnreadableError(
            f"{out}: the rows do not add up to the corpus ({numbers}): delete it and run again"
        )
    if not counts.embedded:
        raise UnreadableError(
            f"{corpus}: none of the {counts.images} images can be used ({_first_reason(out)})"
        )
    RejectBudget(options.max_rejected, counts.images, Counter()).add(0, counts.reasons, corpus, out)
    run = pool.statistics()
    speed = {"images": images, "images_per_second": round(images / max(pool.meter.seconds, 0.01), 2)}
    left_out = generations[-1].left_out
    others = {
        "rejected_by_reason": counts.reasons,
        "left_out": left_out,
        "generation": len(generations),
    }
    write_summary(out, "embed", numbers, speed | run, settings, others)
    content = EmbeddingsContent(
        dim=model.dim,
        model=model.fingerprint,
        generation=len(generations),
        shards=generations[-1].first_shard + generations[-1].shards,
        listing=generations[-1].source,
        rejected_by_reason=counts.reasons,
        left_out=left_out,
        gone=sum(generation.gone for generation in generations),
    )
    return writer.commit(numbers, content)


def _images_done(total: int | None, units: list[pa.Table], generations: list[Generation]) -> int:
    """Estimated images of the finished shards, for the progress bar; 0 if the total is unknown."""
    if total is None:
        return 0
    pending = sum(unit.num_rows for unit in units)
    shards = sum(generation.shards for generation in generations)
    return total - round(total * pending / shards) if shards else 0


def _committed(out: str) -> list[str]:
    names = storage.list_names(storage.join(out, EmbeddingsContent.kind), ".parquet")
    return [name.removesuffix(".parquet") for name in names]


def _first_reason(out: str) -> str:
    if names := storage.list_names(storage.join(out, "rejected"), ".parquet"):
        table = storage.read_table(storage.join(out, "rejected", names[0]), ["reason"])
        return f"the first: {table['reason'][0].as_py()}"
    return "its containers are empty"


@dataclass(frozen=True)
class EmbedReport(Report):
    """duplicates: number of duplicates within the part. rejected: counts by kind of reason."""

    duplicates: int
    rejected: dict[str, int]


class EmbedWorker(Worker[EmbedReport]):
    """Embeds the loaded rows of a part and commits them."""

    report = EmbedReport

    def __init__(
        self, models: ModelSettings, seed: int, batch_size: int, out: str, expected: ModelDescription
    ) -> None:
        self._models, self._seed, self._expected = models, seed, expected
        self._batch_size, self._out = batch_size, out

    def set_up(self, device: str) -> None:
        """Loads the language-image model."""
        self._model = load_retrieval_model(self._models, device=device, seed=self._seed)
        self._expected.require(self._model.fingerprint)

    def work(self, name: str, rows: pa.Table) -> EmbedReport:
        """Writes rejected rows and duplicates, and last the embeddings, which commit the part."""
        usable = pc.indices_nonzero(rows["pixels"].is_valid())
        pixels = [pixels_of(rows, row) for row in usable.to_pylist()]  # views
        vectors = embed_pixels(self._model, pixels, self._batch_size)
        duplicates = rows.select(DUPLICATES_SCHEMA.names).filter(rows["duplicate_of"].is_valid())
        file = f"{name}.parquet"
        rejected = write_rejected(self._out, name, rows)
        if duplicates.num_rows:
            storage.write_table(storage.join(self._out, "duplicates", file), duplicates)
        dim = vectors.shape[1]
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float16()), dim)
        table = rows.select(["image_id", "uri", "width", "height"]).take(usable)
        table = table.append_column("embedding", embedding).cast(embeddings_schema(dim))
        table = table.replace_schema_metadata({IMAGES_KEY: str(rows.num_rows)})
        storage.write_table(storage.join(self._out, EmbeddingsContent.kind, file), table)
        reasons = count_reasons(rejected["reason"].to_pylist())
        return EmbedReport(rows.num_rows, duplicates.num_rows, dict(reasons))
