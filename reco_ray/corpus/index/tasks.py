"""The two tasks of the index stage: training, and adding a shard. Each writes its own files, the record last.

They do not use Ray, so that a flat index can be built without a cluster by the same code.
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

from reco_ray.contents import ShardRecord
from reco_ray.corpus.index.index_plan import IndexPlan, Shard
from reco_ray.corpus.index.recall import (
    EXACT,
    ExactAnswers,
    Queries,
    draw_queries,
    nprobe_steps,
    shard_answers,
)
from reco_ray.corpus.index.vectors import IMAGE_COLUMNS, read_part, sample_vectors, vectors_of
from reco_ray.errors import SettingError, reason
from reco_ray.faiss_library import (
    empty_index,
    inverted_file,
    load_faiss,
    on_gpus,
    without_centroids,
)
from reco_ray.files import storage

TRAINED = "trained"
SEED = 0
ROWS_PER_GROUP = 16_384  # size of the row groups of image tables; looking up one row reads its group
_ROWS_PER_ADD = 65_536


def train(embeddings: str, out: str, plan: IndexPlan) -> str:
    """Trains an empty index on a sample, draws the recall queries, and stores both, then their fingerprint.

    Returns:
        The fingerprint.

    Raises:
        SettingError: If FAISS cannot train on the sample.
    """
    faiss = load_faiss()
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    parts = [part for shard in plan.shards for part in shard.parts]
    index = empty_index(plan.factory, plan.dim)
    ivf = inverted_file(index)
    if ivf is not None:
        ivf.cp.seed = SEED + 1
        # k-means compares every sampled vector with every centroid, which is much faster on a GPU.
        clustering = on_gpus(faiss.IndexFlatIP(ivf.d))
        if not isinstance(clustering, faiss.IndexFlat):
            ivf.clustering_index = clustering
        try:
            index.train(sample_vectors(embeddings, parts, plan.sample, SEED))
        except RuntimeError as error:
            raise SettingError(
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
    """The fingerprint that `train` stored; None if it did not finish."""
    uri = storage.join(out, TRAINED, "fingerprint")
    return storage.read_bytes(uri).decode() if storage.exists(uri) else None


def queries_of(out: str) -> Queries:
    """The queries that `train` stored."""
    return Queries(**load_arrays(storage.read_bytes(storage.join(out, TRAINED, "queries.safetensors"))))


def add_shard(embeddings: str, out: str, plan: IndexPlan, shard: Shard, fingerprint: str) -> ShardRecord:
    """Adds the rows of a shard to a copy of the trained index and stores it.

    Ids are 64-bit row numbers of the whole corpus. Memory holds the shard and the vectors of one file at a time.

    Returns:
        The shard's record, as returned by `record_of`.
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
        for first in range(0, len(vectors), _ROWS_PER_ADD):
            piece = vectors[first : first + _ROWS_PER_ADD]
            index.add_with_ids(piece, np.arange(start, start + len(piece), dtype=np.int64))
            if exact is not None:
                exact.add(piece, start)
            start += len(piece)
        images.add(table.select(IMAGE_COLUMNS))
    answers: dict[int, Any] = {}
    if exact is not None:
        answers = shard_answers(index, queries, nprobe_steps(plan.centroids, plan.settings.nprobe))
        answers[EXACT] = exact.result()
    data = without_centroids(index)
    record = ShardRecord(
        name=shard.name,
        start=shard.start,
        images=int(index.ntotal),
        bytes=int(data.nbytes),
        fingerprint=fingerprint,
    )
    storage.write_bytes(storage.join(out, "images", f"{shard.name}.parquet"), images.finish())
    if answers:
        arrays = {f"s.{step}": similarities for step, (similarities, _) in answers.items()}
        arrays |= {f"r.{step}": rows for step, (_, rows) in answers.items()}
        storage.write_bytes(storage.join(out, "answers", f"{shard.name}.safetensors"), save_arrays(arrays))
    storage.write_bytes(storage.join(out, "shards", f"{shard.name}.faiss"), data.tobytes())
    storage.write_bytes(
        storage.join(out, "shards", f"{shard.name}.json"), json.dumps(record.model_dump()).encode()
    )
    return record


class _ImageTableWriter:
    """Writes a Parquet file in memory with row groups of ROWS_PER_GROUP rows, whatever the sizes of the tables."""

    def __init__(self) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        self._writer = self._writer or pq.ParquetWriter(self._sink, rows.schema, compression="zstd")
        self._waiting.append(rows)
        if sum(table.num_rows for table in self._waiting) >= ROWS_PER_GROUP:
            table = pa.concat_tables(self._waiting)
            whole = table.num_rows // ROWS_PER_GROUP * ROWS_PER_GROUP
            self._writer.write_table(table.slice(0, whole), row_group_size=ROWS_PER_GROUP)
            self._waiting = [table.slice(whole)]

    def finish(self) -> bytes:
        if self._writer is not None:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._writer.close()
        return self._sink.getvalue().to_pybytes()


def record_of(out: str, shard: Shard, fingerprint: str) -> ShardRecord | None:
    """The record of a stored shard; None if it is missing or belongs to another trained index."""
    try:
        file = storage.join(out, "shards", f"{shard.name}.json")
        record = ShardRecord.model_validate_json(storage.read_bytes(file))
    except (FileNotFoundError, ValueError):
        return None
    return record if record.fingerprint == fingerprint else None


def answers_of(out: str, shard: Shard) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The answers of a stored shard: nprobe -> similarities and rows."""
    arrays = load_arrays(storage.read_bytes(storage.join(out, "answers", f"{shard.name}.safetensors")))
    return {int(key[2:]): (arrays[key], arrays[f"r.{key[2:]}"]) for key in arrays if key.startswith("s.")}
