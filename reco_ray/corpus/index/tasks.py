"""The two pieces of work that a cluster does: train once, add a shard. Each commits its files itself, the record last.

Both know files and FAISS, not Ray: a flat index is built without a cluster by the same code.
"""

import hashlib
import json
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from reco_ray import storage
from reco_ray.corpus.index.faiss_library import (
    empty_index,
    inverted_file,
    load_faiss,
    on_gpus,
    without_centroids,
)
from reco_ray.corpus.index.index_plan import IndexPlan, Shard
from reco_ray.corpus.index.recall import EXACT, ExactAnswers, Queries, draw_queries, ladder, shard_answers
from reco_ray.corpus.index.vectors import IMAGE_COLUMNS, read_part, sample_vectors, vectors_of
from reco_ray.errors import RecoError, reason

TRAINED = "trained"
SEED = 0
IMAGES_A_GROUP = 16_384  # rows of the image table that are read to look one up
_ROWS_AT_ONCE = 65_536


def train(embeddings: str, out: str, plan: IndexPlan) -> str:
    """Trains the empty index on a sample, draws the queries, stores both, and their fingerprint last.

    Returns:
        The fingerprint.
    """
    faiss = load_faiss()
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    parts = [part for shard in plan.shards for part in shard.parts]
    index = empty_index(plan.factory, plan.dim)
    ivf = inverted_file(index)
    if ivf is not None:
        ivf.cp.seed = SEED + 1
        # k-means compares every vector of the sample to every centroid: the one step that a GPU is made for.
        clustering = on_gpus(faiss.IndexFlatIP(ivf.d))
        if not isinstance(clustering, faiss.IndexFlat):
            ivf.clustering_index = clustering
        try:
            index.train(sample_vectors(embeddings, parts, plan.sample, SEED))
        except RuntimeError as error:
            raise RecoError(
                f"FAISS cannot train {plan.factory} on {plan.sample:,} vectors: {reason(error)}"
            ) from error
        if not isinstance(clustering, faiss.IndexFlat):
            ivf.clustering_index = None
        queries = draw_queries(embeddings, parts, SEED)
    else:
        queries = Queries(np.zeros((0, plan.dim), np.float32), np.zeros(0, np.int64))
    trained = faiss.serialize_index(index).tobytes()
    asked = save_arrays({"vectors": queries.vectors, "own": queries.own})
    fingerprint = hashlib.sha256(trained + asked).hexdigest()[:16]
    folder = storage.join(out, TRAINED)
    storage.write_bytes(storage.join(folder, "empty.faiss"), trained)
    storage.write_bytes(storage.join(folder, "queries.safetensors"), asked)
    storage.write_bytes(storage.join(folder, "fingerprint"), fingerprint.encode())
    return fingerprint


def trained_fingerprint(out: str) -> str | None:
    """The fingerprint of what `train` stored before, None if it did not finish."""
    uri = storage.join(out, TRAINED, "fingerprint")
    return storage.read_bytes(uri).decode() if storage.exists(uri) else None


def queries_of(out: str) -> Queries:
    """The queries that `train` drew."""
    return Queries(**load_arrays(storage.read_bytes(storage.join(out, TRAINED, "queries.safetensors"))))


def add_shard(embeddings: str, out: str, plan: IndexPlan, shard: Shard, fingerprint: str) -> dict[str, Any]:
    """Adds the rows of a shard to a clone of the trained index and commits it.

    Ids are row numbers of the whole corpus, 64 bits. The vectors of one file are in memory at a time, and the shard.

    Returns:
        The shard's record, as `record_of` reads it.
    """
    faiss = load_faiss()
    folder = storage.join(out, TRAINED)
    index = faiss.deserialize_index(
        np.frombuffer(storage.read_bytes(storage.join(folder, "empty.faiss")), np.uint8)
    )
    queries = queries_of(out)
    exact = ExactAnswers(queries) if inverted_file(index) is not None else None
    images = _ImageTableWriter()
    start = shard.start
    for part in shard.parts:
        table = read_part(embeddings, part)
        vectors = vectors_of(table)
        for first in range(0, len(vectors), _ROWS_AT_ONCE):
            piece = vectors[first : first + _ROWS_AT_ONCE]
            index.add_with_ids(piece, np.arange(start, start + len(piece), dtype=np.int64))
            if exact is not None:
                exact.add(piece, start)
            start += len(piece)
        images.add(table.select(IMAGE_COLUMNS))
    answers: dict[int, Any] = {}
    if exact is not None:
        answers = shard_answers(index, queries, ladder(plan.centroids, plan.settings.nprobe))
        answers[EXACT] = exact.result()
    data = without_centroids(index)
    record = {
        "name": shard.name,
        "start": shard.start,
        "images": int(index.ntotal),
        "bytes": int(data.nbytes),
        "fingerprint": fingerprint,
    }
    storage.write_bytes(storage.join(out, "images", f"{shard.name}.parquet"), images.finish())
    if answers:
        arrays = {f"s.{step}": similarities for step, (similarities, _) in answers.items()}
        arrays |= {f"r.{step}": rows for step, (_, rows) in answers.items()}
        storage.write_bytes(storage.join(out, "answers", f"{shard.name}.safetensors"), save_arrays(arrays))
    storage.write_bytes(storage.join(out, "shards", f"{shard.name}.faiss"), data.tobytes())
    storage.write_bytes(storage.join(out, "shards", f"{shard.name}.json"), json.dumps(record).encode())
    return record


class _ImageTableWriter:
    """A Parquet file in memory whose row groups have IMAGES_A_GROUP rows, whatever the tables added have."""

    def __init__(self) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        self._writer = self._writer or pq.ParquetWriter(self._sink, rows.schema, compression="zstd")
        self._waiting.append(rows)
        if sum(table.num_rows for table in self._waiting) >= IMAGES_A_GROUP:
            table = pa.concat_tables(self._waiting)
            whole = table.num_rows // IMAGES_A_GROUP * IMAGES_A_GROUP
            self._writer.write_table(table.slice(0, whole), row_group_size=IMAGES_A_GROUP)
            self._waiting = [table.slice(whole)]

    def finish(self) -> bytes:
        if self._writer is not None:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._writer.close()
        return self._sink.getvalue().to_pybytes()


def record_of(out: str, shard: Shard, fingerprint: str) -> dict[str, Any] | None:
    """The record of a shard committed before, None if it is not, or was added to another trained index."""
    try:
        record = json.loads(storage.read_bytes(storage.join(out, "shards", f"{shard.name}.json")))
    except (FileNotFoundError, ValueError):
        return None
    return record if record.get("fingerprint") == fingerprint else None


def answers_of(out: str, shard: Shard) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The answers of a committed shard, by nprobe."""
    arrays = load_arrays(storage.read_bytes(storage.join(out, "answers", f"{shard.name}.safetensors")))
    return {int(key[2:]): (arrays[key], arrays[f"r.{key[2:]}"]) for key in arrays if key.startswith("s.")}
