"""The duplicates stage: groups of images that look nearly the same, found with the index of the corpus.

Every image asks the index for its nearest neighbours, so the time grows with what a search costs, not with the square
of the corpus. The artifact holds:

- `pairs/<part>.parquet`: PAIRS_SCHEMA, of the images of one part; the last file of a part, so a killed run goes on
- `groups.parquet`: `image_groups.GROUPS_SCHEMA`
"""

import numpy as np
import pyarrow as pa

from reco_ray.config import StagePlacement
from reco_ray.contents import DuplicatesContent, EmbeddingsContent, IndexContent
from reco_ray.corpus.image_groups import GROUPS, GROUPS_SCHEMA, ImageGroups, connected
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.index.vectors import Part, list_parts, read_part, rows_at, vectors_of
from reco_ray.distributed.parts import Report, Worker
from reco_ray.distributed.pool import stage_pool
from reco_ray.errors import OtherModelError
from reco_ray.files import artifacts, storage
from reco_ray.outcome import DuplicatesResult
from reco_ray.presentation.console import progress

PAIRS_SCHEMA = pa.schema([("first", pa.int64()), ("second", pa.int64()), ("similarity", pa.float32())])
SHOWN = 20  # groups in the result
WITHOUT_CLUSTER = 100_000  # so many images are compared sooner than Ray starts
_PART_ROWS = 4096
_NEIGHBOURS, _MOST_NEIGHBOURS = 16, 1024
_QUERIES = 1024
# Codes of compressed indexes tell cosines this exactly; pairs are compared again with the embeddings themselves.
_MARGIN = 0.05


def find_duplicates(index: str, similarity: float, out: str) -> DuplicatesResult:
    """Groups the images of an index that look nearly the same; on the connected Ray cluster if `needs_cluster`.

    Args:
        index: URI of the index.
        similarity: least cosine of the embeddings of two near-duplicates. Groups are connected: two images of a group
            may be less alike if images between them connect them.
        out: URI of the artifact.

    Raises:
        RecoError: the index or its embeddings are missing, damaged, or do not belong together.
    """
    manifest = artifacts.read_manifest(index, IndexContent)
    index = storage.absolute(index)
    made_from = {"index": index, "index_made_at": manifest.made_at, "similarity": similarity}
    writer = artifacts.ArtifactWriter(out, DuplicatesContent, made_from)
    if found := writer.finished():
        known = ImageGroups.open(writer.uri).largest(SHOWN)
        return DuplicatesResult("duplicates", writer.uri, found, new=False, groups=known)
    embeddings = _embeddings_of(index, manifest)
    parts = list_parts(embeddings, artifacts.read_manifest(embeddings, EmbeddingsContent).content)
    _compare(index, embeddings, parts, similarity, writer.uri, images=manifest.counts["images"])
    table, images = _groups(index, manifest, writer.uri)
    storage.write_table(storage.join(writer.uri, GROUPS), table)
    groups = int(table["kept"].combine_chunks().to_numpy(zero_copy_only=False).sum())
    counts = {"images": images, "groups": groups, "duplicates": table.num_rows - groups}
    content = DuplicatesContent(index=index, index_made_at=manifest.made_at, similarity=similarity)
    made = writer.commit(counts, content)
    shown = ImageGroups(writer.uri, content, table).largest(SHOWN)
    return DuplicatesResult("duplicates", writer.uri, made, groups=shown)


def needs_cluster(index: str) -> bool:
    """Whether `find_duplicates` runs on a Ray cluster; raises RecoError if there is no index."""
    return artifacts.read_manifest(index, IndexContent).counts["images"] > WITHOUT_CLUSTER


def _embeddings_of(index: str, manifest: artifacts.Manifest[IndexContent]) -> str:
    """URI of the embeddings of an index, if they are still those that it was built of."""
    embeddings = str(manifest.made_from["embeddings"])
    found = artifacts.read_manifest(embeddings, EmbeddingsContent)
    if found.made_at != manifest.made_from["embeddings_made_at"]:
        raise OtherModelError(
            f"{index}: its embeddings, {embeddings}, have changed since it was built: add what is new with "
            "`reco-ray index --follow`, or index them anew"
        )
    return embeddings


def _compare(
    index: str, embeddings: str, parts: list[Part], similarity: float, out: str, *, images: int
) -> None:
    """Writes the pairs of the parts that are not committed."""
    starts = np.cumsum([0, *(part.rows for part in parts)]).tolist()
    table = pa.table(
        {"part": [part.name for part in parts], "rows": [p.rows for p in parts], "start": starts[:-1]}
    )
    together = max(1, _PART_ROWS * len(parts) // max(1, images))
    cut = range(0, table.num_rows, together)
    shards = {f"{number:06d}": table.slice(start, together) for number, start in enumerate(cut)}
    done = {name.removesuffix(".parquet") for name in storage.list_names(storage.join(out, "pairs"))}
    pending = {name: shard for name, shard in shards.items() if name not in done}
    load = VectorLoader(embeddings)
    worker = PairWorker(index, embeddings, parts, similarity, out)
    left = sum(sum(shard["rows"].to_pylist()) for shard in pending.values())
    if images > WITHOUT_CLUSTER:
        with stage_pool("duplicates", "cpu", StagePlacement(), images, images - left) as pool:
            pool.run(pending, load, worker)
        return
    worker.set_up("cpu")
    with progress("duplicates", images, images - left) as advance:
        for name, shard in pending.items():
            advance(worker.work(name, load(shard)).items)


class VectorLoader:
    """Loads the embeddings of parts: `part`, `rows`, `start` -> `row`, `embedding`."""

    def __init__(self, embeddings: str) -> None:
        self._embeddings = embeddings

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Reads the files one after another."""
        tables = []
        for part in parts.to_pylist():
            read = read_part(self._embeddings, Part(part["part"], part["rows"]), ["embedding"])
            rows = np.arange(part["start"], part["start"] + part["rows"], dtype=np.int64)
            tables.append(read.add_column(0, "row", pa.array(rows)))
        return pa.concat_tables(tables)


class PairWorker(Worker[Report]):
    """Asks the index for the neighbours of images, and writes the pairs that are near-duplicates."""

    report = Report

    def __init__(self, index: str, embeddings: str, parts: list[Part], similarity: float, out: str) -> None:
        self._uri, self._embeddings, self._parts = index, embeddings, parts
        self._similarity, self._out = similarity, out

    def set_up(self, device: str) -> None:
        """Opens the index."""
        model = artifacts.read_manifest(self._uri, IndexContent).content.model
        self._index = CorpusIndex(self._uri, model)

    def work(self, name: str, rows: pa.Table) -> Report:
        """Writes the pairs of one part; of images of which one is in another part, both parts may have it."""
        vectors, numbers = vectors_of(rows), rows["row"].to_numpy()
        found = [
            self._pairs(vectors[start : start + _QUERIES], numbers[start : start + _QUERIES])
            for start in range(0, len(numbers), _QUERIES)
        ]
        table = pa.concat_tables([PAIRS_SCHEMA.empty_table(), *found])
        storage.write_table(storage.join(self._out, "pairs", f"{name}.parquet"), table)
        return Report(rows.num_rows)

    def _pairs(self, vectors: np.ndarray, rows: np.ndarray) -> pa.Table:
        least = self._similarity - (0 if self._index.exact else _MARGIN)
        first, second, similarity = self._near(vectors, rows, least)
        if not self._index.exact and len(first):
            similarity = self._similarities(vectors, rows, first, second)
        chosen = similarity >= self._similarity
        columns = (first[chosen], second[chosen], similarity[chosen].astype(np.float32))
        return pa.table(dict(zip(PAIRS_SCHEMA.names, columns, strict=True)), schema=PAIRS_SCHEMA)

    def _near(
        self, vectors: np.ndarray, rows: np.ndarray, least: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of each image and its neighbours; asks for more while all that were asked for are near enough."""
        k = min(_NEIGHBOURS, len(self._index))
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while len(rows):
            similarities, neighbours = self._index.search(vectors, k)
            near: np.ndarray = (similarities >= least) & (neighbours >= 0)
            more = near.all(1) & (k < min(_MOST_NEIGHBOURS, len(self._index)))
            done = np.logical_not(more)[:, None]
            chosen = near & (neighbours != rows[:, None]) & done
            query = np.broadcast_to(rows[:, None], neighbours.shape)
            found.append((query[chosen], neighbours[chosen], similarities[chosen]))
            vectors, rows, k = vectors[more], rows[more], min(4 * k, len(self._index))
        first, second, similarity = (np.concatenate(column) for column in zip(*found, strict=True))
        return first, second, similarity

    def _similarities(
        self, vectors: np.ndarray, rows: np.ndarray, first: np.ndarray, second: np.ndarray
    ) -> np.ndarray:
        """Cosines of the embeddings themselves."""
        needed, place = np.unique(second, return_inverse=True)
        others = rows_at(self._embeddings, self._parts, needed)[place]
        own = vectors[np.searchsorted(rows, first)]
        return np.einsum("nd,nd->n", own, others)


def _groups(index: str, manifest: artifacts.Manifest[IndexContent], out: str) -> tuple[pa.Table, int]:
    """GROUPS_SCHEMA, the largest group first, and the number of images of the index."""
    pairs = storage.read_table(storage.join(out, "pairs"))
    first, second, similarity = (pairs[name].to_numpy() for name in PAIRS_SCHEMA.names)
    members = connected(np.stack([first, second], axis=1))
    searched = CorpusIndex(index, manifest.content.model)
    rows, roots = members[:, 0], members[:, 1]
    highest = np.zeros(len(rows), np.float32)
    for side in (first, second):
        np.maximum.at(highest, np.searchsorted(rows, side), similarity)
    images = searched.images.take(rows)
    pixels = images["width"].to_numpy().astype(np.int64) * images["height"].to_numpy()
    uris = np.array(images["uri"].to_pylist(), dtype=object)
    _, inverse, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    # The largest groups first, in them the images with the most pixels.
    ranked = sorted(range(len(rows)), key=lambda n: (-sizes[inverse[n]], roots[n], -pixels[n], uris[n]))
    order = np.array(ranked, np.int64)
    starts = np.ones(len(order), bool)
    starts[1:] = roots[order][1:] != roots[order][:-1]
    table = images.take(pa.array(order)).append_column("similarity", pa.array(highest[order]))
    table = table.append_column("group", pa.array(np.cumsum(starts, dtype=np.int64) - 1))
    table = table.append_column("kept", pa.array(starts))
    return table.select(GROUPS_SCHEMA.names).cast(GROUPS_SCHEMA), len(searched)
