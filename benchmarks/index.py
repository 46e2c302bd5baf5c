"""Build time, size, latency and recall of every kind of index on the same vectors. Prints a table and JSON.

    flock LOCK python benchmarks/index.py [--vectors 1000000] [--dim 512] [--minutes 10] [--autofaiss PYTHON]

The vectors are synthetic but not white noise, in which nothing has neighbours and every list is as good as the next.
They imitate embeddings of photographs: a shared direction (a cosine of 0.4 between any two), 5,000 topics of very
unequal size (Zipf), themselves in 100 groups, and variances that fall as a power of their rank, so that about
100 of 512 dimensions carry most of it. Unit rows, half precision.

Queries are what `reco-ray index` draws to measure recall: rows of the corpus with themselves taken out ("images"),
and unit means of two rows ("between"), where words lie; others than those on which the stage chooses nprobe. Each kind
of index is built by the stage on a local Ray cluster that is running already, one shard a core. Latency is of one
query at a time, k = 50, memory-mapped, after a warm-up. "faiss" is plain IndexFlatIP; "autofaiss" chooses by itself,
tuned to answer within 10 ms, in its own environment.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reco_ray.config import IndexSettings
from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus.index import CorpusIndex, build_index
from reco_ray.corpus.index.recall import KINDS, Queries, draw_queries, recall
from reco_ray.corpus.index.vectors import list_parts, vectors_of
from reco_ray.corpus.stage import embeddings_schema
from reco_ray.distributed.session import session
from reco_ray.faiss_library import load_faiss
from reco_ray.files import artifacts, storage

PART = 50_000
MODEL = "synthetic"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--minutes", type=float, default=10, help="kinds not begun by then are left out")
    parser.add_argument("--latency-queries", type=int, default=200)
    parser.add_argument(
        "--factories", nargs="*", help="default: the stage's choices and product quantisation"
    )
    parser.add_argument("--out", help="folder where vectors and indexes stay, e.g. for `reco-ray rate`")
    parser.add_argument("--autofaiss", help="the Python of an environment with autofaiss")
    options = parser.parse_args()
    begin = time.monotonic()
    lists = 2 ** round(np.log2(4 * np.sqrt(options.vectors)))
    codes = options.dim // 4
    factories = options.factories or [
        f"IVF{lists},SQ8",
        f"RR{options.dim},IVF{lists},RaBitQ2",
        f"IVF{lists},PQ{codes}np",
        f"RR{options.dim},IVF{lists},PQ{codes}np",
    ]
    with session(), tempfile.TemporaryDirectory() as scratch:
        folder = options.out or scratch
        embeddings = write_vectors(f"{folder}/embeddings", options.vectors, options.dim)
        content = artifacts.read_manifest(embeddings, EmbeddingsContent).content
        # Not those that the stage draws.
        queries = draw_queries(embeddings, list_parts(embeddings, content), seed=7)
        row, exact = measure_plain(embeddings, queries, options.latency_queries)
        rows = [row]
        for factory in ["Flat", *factories, *(["autofaiss"] if options.autofaiss else [])]:
            left = 60 * options.minutes - (time.monotonic() - begin)
            if left < 0:
                row = {"index": factory, "skipped": "out of time"}
            elif factory == "autofaiss":
                python = options.autofaiss
                row = measure_autofaiss(
                    python, embeddings, folder, queries, exact, left, options.latency_queries
                )
            else:
                row = measure_stage(embeddings, folder, factory, queries, exact, options.latency_queries)
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(as_table(rows))
    about = {
        "benchmark": "index",
        "vectors": options.vectors,
        "dim": options.dim,
        "cpus": os.cpu_count(),
        "faiss": load_faiss().__version__,
        "machine": platform.machine(),
        "load": round(os.getloadavg()[0], 1),
        "seconds": round(time.monotonic() - begin),
        "commit": _commit(),
    }
    print(json.dumps(about | {"rows": rows}))


def synthetic(count: int, dim: int, seed: int) -> np.ndarray:
    """float16 unit rows (count, dim); the same topics whatever the seed of the rows."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    spread = np.arange(1, dim + 1) ** -0.6
    spread /= np.linalg.norm(spread)
    groups = fixed.normal(size=(100, dim))
    topics = groups[fixed.integers(100, size=5000)] + fixed.normal(size=(5000, dim))
    sizes = 1 / np.arange(1, 5001) ** 0.8
    chosen = random.choice(5000, count, p=sizes / sizes.sum())
    rows = 0.55 * topics[chosen] + random.standard_normal((count, dim), np.float32)
    rows *= spread
    shared = fixed.normal(size=dim) / np.sqrt(dim)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) + np.sqrt(0.4 / 0.6) * shared
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def write_vectors(uri: str, count: int, dim: int) -> str:
    """An embeddings artifact, made piece by piece."""
    writer = artifacts.ArtifactWriter(uri, EmbeddingsContent, {"corpus": "synthetic"})
    writer.finished()
    for number, start in enumerate(range(0, count, PART)):
        rows = synthetic(min(PART, count - start), dim, seed=1 + number)
        flat = pa.array(rows.reshape(-1), pa.float16())
        table = pa.table(
            {
                "image_id": [f"{start + n:064x}" for n in range(len(rows))],
                "uri": [f"/{start + n}.jpg" for n in range(len(rows))],
                "width": pa.array([640] * len(rows), pa.int32()),
                "height": pa.array([480] * len(rows), pa.int32()),
                "embedding": pa.FixedSizeListArray.from_arrays(flat, dim),
            }
        )
        storage.write_table(f"{uri}/embeddings/{number:08d}.parquet", table.cast(embeddings_schema(dim)))
    counts = {"images": count, "embedded": count, "rejected": 0, "duplicates": 0}
    writer.commit(counts, EmbeddingsContent(dim=dim, model=MODEL, shards=number + 1))
    return uri


def measure_plain(
    embeddings: str, queries: Queries, latency_queries: int
) -> tuple[dict[str, Any], np.ndarray]:
    """faiss.IndexFlatIP over everything in memory; also the exact answers."""
    faiss = load_faiss()
    start = time.perf_counter()
    content = artifacts.read_manifest(embeddings, EmbeddingsContent).content
    index = faiss.IndexFlatIP(content.dim)
    for part in list_parts(embeddings, content):
        index.add(_vectors(f"{embeddings}/embeddings/{part.name}"))
    built = time.perf_counter() - start
    exact = index.search(queries.vectors, queries.neighbours)[1]
    latency = _latency(lambda query: index.search(query, 50), queries.vectors, latency_queries)
    row = {"index": "faiss IndexFlatIP", "build_seconds": round(built, 1), "bytes_a_vector": 4 * index.d}
    return row | latency | dict.fromkeys(KINDS, 1.0), exact


def measure_stage(
    embeddings: str, folder: str, factory: str, queries: Queries, exact: np.ndarray, latency_queries: int
) -> dict[str, Any]:
    """What `reco-ray index` makes of the factory."""
    out = f"{folder}/{factory.replace(',', '_')}"
    images = artifacts.read_manifest(embeddings, EmbeddingsContent).counts["embedded"]
    share = -(-images // (os.cpu_count() or 1))
    start = time.time()
    build_index(embeddings, out, IndexSettings(factory=factory, min_recall=0, shard_size=share))
    built = time.time() - start
    index = CorpusIndex(out, MODEL)
    found = index.search(queries.vectors, queries.neighbours)[1]
    row = {
        "index": factory,
        "build_seconds": round(built, 1),
        "train_seconds": round(Path(out, "trained/fingerprint").stat().st_mtime - start, 1),
        "bytes_a_vector": _size(Path(out, "shards"), len(index)),
        "nprobe": index.manifest.content.nprobe,
    }
    latency = _latency(lambda query: index.search(query, 50), queries.vectors, latency_queries)
    return row | latency | _recalls(found, exact, queries)


_AUTOFAISS = """
import sys, time, json
import faiss, numpy as np
from autofaiss import build_index
folder, repetitions = sys.argv[1], int(sys.argv[2])
start = time.time()
build_index(folder + "/npy", index_path=folder + "/af.index", index_infos_path=folder + "/af.json", metric_type="ip",
            max_index_query_time_ms=10, max_index_memory_usage="2G", current_memory_available="8G", verbose=30)
built = time.time() - start
index = faiss.read_index(folder + "/af.index")
asked = np.load(folder + "/queries.npy")
np.save(folder + "/found.npy", index.search(asked, 51)[1])
times = []
for n in range(repetitions + 20):
    begin = time.perf_counter()
    index.search(asked[n % len(asked)][None], 50)
    times.append(1000 * (time.perf_counter() - begin))
key = json.load(open(folder + "/af.json"))["index_key"]
print(json.dumps({"built": built, "times": times[20:], "key": key}))
"""


def measure_autofaiss(
    python: str, embeddings: str, folder: str, queries: Queries, exact: np.ndarray, seconds: float, count: int
) -> dict[str, Any]:
    """What autofaiss makes of the same vectors, in a process of its own environment."""
    work = Path(folder, "autofaiss")
    (work / "npy").mkdir(parents=True)
    parts = list_parts(embeddings, artifacts.read_manifest(embeddings, EmbeddingsContent).content)
    for part in parts:
        np.save(work / "npy" / f"{part.name}.npy", _vectors(f"{embeddings}/embeddings/{part.name}"))
    np.save(work / "queries.npy", queries.vectors)
    try:
        done = subprocess.run(
            [python, "-c", _AUTOFAISS, str(work), str(count)],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
    except subprocess.TimeoutExpired:
        return {"index": "autofaiss", "skipped": f"not done after {seconds:.0f} s"}
    except subprocess.CalledProcessError as error:
        return {"index": "autofaiss", "skipped": error.stderr.strip().splitlines()[-1]}
    told = json.loads(done.stdout.strip().splitlines()[-1])
    row = {
        "index": f"autofaiss {told['key']}",
        "build_seconds": round(told["built"], 1),
        "bytes_a_vector": round((work / "af.index").stat().st_size / sum(part.rows for part in parts), 1),
    }
    return row | _percentiles(told["times"]) | _recalls(np.load(work / "found.npy"), exact, queries)


def _vectors(uri: str) -> np.ndarray:
    return vectors_of(storage.read_table(uri, ["embedding"]))


def _size(folder: Path, count: int) -> float:
    return round(sum(file.stat().st_size for file in folder.glob("*.faiss")) / count, 1)


def _latency(search: Callable[[np.ndarray], object], queries: np.ndarray, count: int) -> dict[str, float]:
    times = []
    for number in range(count + 20):
        query = queries[number % len(queries)][None]
        start = time.perf_counter()
        search(query)
        times.append(1000 * (time.perf_counter() - start))
    return _percentiles(times[20:])


def _percentiles(milliseconds: list[float]) -> dict[str, float]:
    return {f"p{share}_ms": round(float(np.percentile(milliseconds, share)), 2) for share in (50, 99)}


def _recalls(found: np.ndarray, exact: np.ndarray, queries: Queries) -> dict[str, float]:
    shares = recall(found, exact, queries.own).reshape(len(KINDS), -1).mean(axis=1)
    return {kind: round(float(share), 3) for kind, share in zip(KINDS, shares, strict=True)}


def as_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    columns = {
        "index": "index",
        "build_seconds": "build, s",
        "train_seconds": "of it training, s",
        "bytes_a_vector": "bytes a vector",
        "nprobe": "nprobe",
        "p50_ms": "p50, ms",
        "p99_ms": "p99, ms",
        "images": "recall@50 images",
        "between": "recall@50 between",
    }
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [str(row.get(key) if row.get(key) is not None else "") for key in columns]
        lines.append("| " + " | ".join(cells) + " |" + row.get("skipped", ""))
    return "\n".join(lines)


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
