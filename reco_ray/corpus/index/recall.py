"""recall@k of an index compared with exact search, measured on queries that nprobe was not chosen with.

Two kinds of queries are drawn from the embeddings:

- *images*: rows of the corpus. A query's own row is left out of both answers.
- *between*: the normalised mean of two rows. Text embeddings, with which the index is searched, are not close to image
  embeddings, and their neighbours are spread over more lists than an image's; so are those of such a mean.

Every shard answers all queries exactly, from the vectors it reads for the index, and approximately with several nprobe.
The shards' answers are merged, so recall of the whole corpus is measured without opening the whole index.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from reco_ray.contents import Recall
from reco_ray.corpus.index.vectors import Part, rows_at
from reco_ray.faiss_library import inverted_file, load_faiss

K = 50
QUERIES_PER_KIND = 128
KINDS = ("images", "between")
EXACT = 0  # key of the exact answers, in place of an nprobe
_MIN_GAIN = 0.003  # of recall; a larger nprobe is chosen only if it gains more


@dataclass(frozen=True)
class Queries:
    """Queries that measure recall.

    Attributes:
        vectors: float32 (n, d), first those of the kind `images`, then those of `between`.
        own: int64 (n,), the row a query was taken from, or -1.
    """

    vectors: np.ndarray
    own: np.ndarray

    @property
    def neighbours(self) -> int:
        """Number of neighbours to search for: K, and one more for the query's own row."""
        return K + 1


def draw_queries(embeddings: str, parts: list[Part], seed: int) -> Queries:
    """Draws queries of both kinds; deterministic for a seed."""
    images = sum(part.rows for part in parts)
    count = min(QUERIES_PER_KIND, images // 3)
    rows = np.sort(np.random.default_rng(seed).choice(images, 3 * count, replace=False))
    drawn = rows_at(embeddings, parts, rows)
    random = np.random.default_rng(seed + 1).permutation(3 * count)
    own, first, second = random[:count], random[count : 2 * count], random[2 * count :]
    between = drawn[first] + drawn[second]
    between /= np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-12)
    return Queries(
        np.concatenate([drawn[own], between]), np.concatenate([rows[own], np.full(count, -1, np.int64)])
    )


def nprobe_steps(centroids: int, nprobe: int | None) -> list[int]:
    """The values of nprobe to try: powers of two up to 1,024, or the one that is set."""
    if nprobe is not None:
        return [min(nprobe, centroids)]
    most = min(centroids, 1024)
    return sorted({*(2**power for power in range(11) if 2**power <= most), most})


class ExactAnswers:
    """Exact nearest neighbours of all queries among vectors that are added piece by piece."""

    def __init__(self, queries: Queries) -> None:
        self._faiss = load_faiss()
        self._queries = queries
        self._heap = self._faiss.ResultHeap(len(queries.vectors), queries.neighbours, keep_max=True)
        self._seen = 0

    def add(self, vectors: np.ndarray, start: int) -> None:
        if len(vectors):
            k = min(self._queries.neighbours, len(vectors))
            similarities, rows = self._faiss.knn(
                self._queries.vectors, vectors, k, metric=self._faiss.METRIC_INNER_PRODUCT
            )
            self._heap.add_result(similarities, rows + start)
            self._seen += len(vectors)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Similarities float32 and rows int64, each (n, neighbours), best first; row -1 if there are fewer vectors."""
        self._heap.finalize()
        k = min(self._queries.neighbours, self._seen)
        rows = np.full_like(self._heap.I, -1)
        rows[:, :k] = self._heap.I[:, :k]
        return np.where(rows < 0, -np.inf, self._heap.D).astype(np.float32), rows


def shard_answers(index: Any, queries: Queries, steps: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Searches a shard with each nprobe; nprobe -> similarities and rows, each (n, neighbours)."""
    faiss = load_faiss()
    answers = {}
    for nprobe in steps:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe)
        if inverted_file(index).this != index.this:
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        answers[nprobe] = index.search(queries.vectors, queries.neighbours, params=parameters)
    return answers


def merge_answers(answers: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Merges several answers to the same queries into the k best; of equal similarities the first is kept."""
    similarities = np.concatenate([each[0] for each in answers], axis=1)
    rows = np.concatenate([each[1] for each in answers], axis=1)
    similarities = np.where(rows < 0, -np.inf, similarities)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1)


def recall(found: np.ndarray, exact: np.ndarray, own: np.ndarray) -> np.ndarray:
    """recall@K of each query, without its own row.

    Args:
        found: int64 (n, K + 1), rows found, best first; -1 for none.
        exact: int64 (n, K + 1), the exact neighbours.
        own: int64 (n,), as in `Queries`.

    Returns:
        float64 (n,), in [0, 1].
    """
    shares = []
    for mine, theirs, self_ in zip(found, exact, own, strict=True):
        wanted = [row for row in theirs if row not in (self_, -1)][:K]
        got = [row for row in mine if row not in (self_, -1)][:K]
        shares.append(len(set(wanted) & set(got)) / max(1, len(wanted)))
    return np.array(shares)


def measure(
    answers: dict[int, tuple[np.ndarray, np.ndarray]], own: np.ndarray, target: float
) -> tuple[int, Recall]:
    """Chooses nprobe on every second query and measures recall on the others.

    Args:
        answers: nprobe -> answers of the whole corpus; under EXACT the exact ones.
        own: int64 (n,), as in `Queries`.
        target: The smallest nprobe that reaches this recall is chosen, or the last one that improved it.

    Returns:
        The chosen nprobe, and its recall.
    """
    exact = answers[EXACT][1]
    steps = sorted(step for step in answers if step != EXACT)
    kinds = np.repeat(np.arange(len(KINDS)), len(own) // len(KINDS))
    held_out = np.arange(len(own)) % 2 == 1
    chosen, best = steps[0], -1.0
    shares = {step: recall(answers[step][1], exact, own) for step in steps}
    for step in steps:
        reached = min(shares[step][~held_out & (kinds == kind)].mean() for kind in range(len(KINDS)))
        if reached > best + _MIN_GAIN:
            chosen, best = step, reached
        if reached >= target:
            break
    images, between = (
        round(float(shares[chosen][held_out & (kinds == kind)].mean()), 4) for kind in range(len(KINDS))
    )
    return chosen, Recall(k=K, queries=int(held_out.sum()), images=images, between=between)
