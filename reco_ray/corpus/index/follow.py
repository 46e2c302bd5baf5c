"""Adds to a finished index what was embedded since, as further shards; what is there stays byte for byte."""

from dataclasses import replace

import numpy as np

from reco_ray.config import IndexSettings
from reco_ray.contents import EmbeddingsContent, IndexContent, ShardRecord
from reco_ray.corpus.index.index_plan import IndexPlan, Shard, make_plan
from reco_ray.corpus.index.shard_files import ImageTable, shard_files
from reco_ray.corpus.index.stage import build_shards, measure_recall
from reco_ray.corpus.index.vectors import Part, list_parts, read_part
from reco_ray.distributed.timing import write_summary
from reco_ray.errors import OtherModelError, SettingError, UnreadableError
from reco_ray.files import artifacts, storage
from reco_ray.outcome import Outcome

# Settings with which the answers of the shards that are there were measured.
_MEASURED = ("nprobe", "target_recall")


def plan_follow(embeddings: str, out: str, settings: IndexSettings) -> IndexPlan | None:
    """Plans the shards of what was embedded since an index was made; None if it has everything.

    Args:
        embeddings: URI of the embeddings.
        out: URI of the index, which is finished.
        settings: of the index; its kind stays.

    Returns:
        A plan whose shards are those of the index, without parts, then the new ones.

    Raises:
        RecoError: an index of other embeddings, or of version 0.1; rows of the embeddings have gone.
    """
    source = artifacts.read_manifest(embeddings, EmbeddingsContent)
    manifest = artifacts.read_manifest(out, IndexContent)
    content, made_from = manifest.content, manifest.made_from
    if made_from.get("embeddings") != storage.absolute(embeddings) or content.model != source.content.model:
        raise OtherModelError(
            f"{out}: is the index of {made_from.get('embeddings')}, made with {content.model}: --follow adds what "
            "these embeddings got since; index others into another --out"
        )
    if made_from.get("embeddings_made_at") == source.made_at:
        return None
    if content.shards is None:
        raise UnreadableError(f"{out}: was made by version 0.1, which --follow cannot add to: index anew")
    if settings.factory not in ("auto", content.factory):
        raise SettingError(
            f"setting index.factory: --follow keeps {content.factory}: index with another into another --out"
        )
    parts = list_parts(embeddings, source.content)
    known = _require_same_rows(embeddings, out, manifest, parts)
    images = sum(part.rows for part in parts)
    measured = {name: made_from[f"index.{name}"] for name in _MEASURED if f"index.{name}" in made_from}
    chosen = settings.model_copy(update={"factory": content.factory, **measured})
    plan = make_plan(images, content.dim, chosen, parts[known:])
    start = manifest.counts["images"]
    old = [Shard(record.name, record.start, record.images, ()) for record in content.shards]
    new = [
        replace(shard, name=f"{len(old) + number:06d}", start=start + shard.start)
        for number, shard in enumerate(plan.shards)
        if shard.rows
    ]
    return replace(plan, shards=(*old, *new), settings=chosen)


def _require_same_rows(
    embeddings: str, out: str, manifest: artifacts.Manifest[IndexContent], parts: list[Part]
) -> int:
    """Number of parts that the index has already. Looks at the last image of every shard.

    Raises:
        OtherModelError: rows have gone since, which changes the numbers of those behind them.
    """
    ends = {record.start + record.images - 1 for record in manifest.content.shards or ()}
    images = ImageTable(shard_files(storage.absolute(out), manifest))
    start = known = 0
    for part in parts:
        if start >= manifest.counts["images"]:
            break
        known += 1
        for end in sorted(end for end in ends if start <= end < start + part.rows):
            ids = read_part(embeddings, part, ["image_id"])["image_id"]
            if images.take(np.array([end]))["image_id"][0] != ids[end - start]:
                raise _gone(embeddings, out)
        start += part.rows
    if start != manifest.counts["images"]:
        raise _gone(embeddings, out)
    return known


def _gone(embeddings: str, out: str) -> OtherModelError:
    return OtherModelError(
        f"{out}: images have gone from {embeddings} since it was made, so nothing can be added to it: index anew, into "
        "another --out"
    )


def follow_index(embeddings: str, out: str, plan: IndexPlan) -> Outcome:
    """Adds the new shards of a plan; on the connected Ray cluster if the plan needs one.

    The manifest of the index before stays until the new one replaces it, so that the index can be searched meanwhile.

    Raises:
        RecoError: the output cannot be written, or recall is below `index.min_recall`.
    """
    source = artifacts.read_manifest(embeddings, EmbeddingsContent)
    manifest = artifacts.read_manifest(out, IndexContent)
    made_from = {**manifest.made_from, "embeddings_made_at": source.made_at}
    writer = artifacts.ArtifactWriter(out, IndexContent, made_from)
    for shard in plan.shards:
        if shard.parts:
            _forget_shorter(writer.uri, shard)
    records, took = build_shards(storage.absolute(embeddings), writer.uri, plan)
    counted = sum(record.images for record in records)
    if counted != plan.images:
        raise UnreadableError(
            f"{writer.uri}: the shards hold {counted:,} vectors, the embeddings {plan.images:,}: index anew"
        )
    nprobe, recall = measure_recall(writer.uri, plan)
    content = manifest.content.model_copy(update={"shards": records, "nprobe": nprobe, "recall": recall})
    counts = {"images": counted}
    write_summary(writer.uri, "index", counts, took, {"index.kind": plan.kind, "dim": plan.dim})
    return Outcome("index", writer.uri, writer.commit(counts, content))


def _forget_shorter(out: str, shard: Shard) -> None:
    """Deletes the record of a shard that an interrupted run made before still more was embedded."""
    file = storage.join(out, "shards", f"{shard.name}.json")
    if not storage.exists(file):
        return
    try:
        same = ShardRecord.model_validate_json(storage.read_bytes(file)).images == shard.rows
    except ValueError:
        same = False
    if not same:
        storage.remove(file)
