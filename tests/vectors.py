"""Embeddings artifacts without images: clustered unit vectors, as many as a test wants, in seconds."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus.stage import embeddings_schema
from reco_ray.files import artifacts, storage

MODEL = "synthetic"


def clustered(count: int, dim: int = 32, clusters: int = 40, seed: int = 0) -> np.ndarray:
    """Half-precision unit vectors around centres, (count, dim), as float32; the same centres whatever the seed."""
    centres = np.random.default_rng(99).normal(size=(clusters, dim))
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(clusters, size=count)] + 0.6 * random.normal(size=(count, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16).astype(np.float32)


def follow_embeddings(uri: str, vectors: np.ndarray, part_size: int = 300) -> None:
    """Makes of an embeddings artifact one of more vectors, as `embed --follow` does: at a later time."""
    storage.remove(storage.join(uri, artifacts.MANIFEST))
    write_embeddings(uri, vectors, part_size)
    file = storage.join(uri, artifacts.MANIFEST)
    later = json.loads(storage.read_bytes(file))
    storage.write_bytes(file, json.dumps({**later, "made_at": f"later: {len(vectors)}"}).encode())


def write_embeddings(folder: Path | str, vectors: np.ndarray, part_size: int = 300) -> str:
    """An embeddings artifact of these vectors; every third image is of the set `b`, the others of `a`."""
    uri = str(folder)
    dim = vectors.shape[1]
    writer = artifacts.ArtifactWriter(uri, EmbeddingsContent, {"corpus": "synthetic"})
    assert writer.finished() is None
    for number, start in enumerate(range(0, len(vectors), part_size)):
        rows = vectors[start : start + part_size]
        names = [f"/{'b' if (start + n) % 3 == 0 else 'a'}/{start + n:07d}.jpg" for n in range(len(rows))]
        flat = pa.array(rows.reshape(-1).astype(np.float16), pa.float16())
        table = pa.table(
            {
                "image_id": [f"{start + n:064x}" for n in range(len(rows))],
                "uri": names,
                "width": pa.array([96] * len(rows), pa.int32()),
                "height": pa.array([72] * len(rows), pa.int32()),
                "embedding": pa.FixedSizeListArray.from_arrays(flat, dim),
            }
        )
        storage.write_table(
            storage.join(uri, "embeddings", f"{number:08d}.parquet"), table.cast(embeddings_schema(dim))
        )
    counts = {"images": len(vectors), "embedded": len(vectors), "rejected": 0, "duplicates": 0}
    writer.commit(counts, EmbeddingsContent(dim=dim, model=MODEL, shards=number + 1))
    return uri
