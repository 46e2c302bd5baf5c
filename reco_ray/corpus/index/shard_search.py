"""Searches shards that share a trained index."""

from typing import Any

import numpy as np

from reco_ray.corpus.index.recall import merge_answers
from reco_ray.faiss_library import inverted_file, load_faiss


def search_shards(
    indexes: list[Any], queries: np.ndarray, k: int, nprobe: int, selector: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest rows over all shards. Queries are compared with the shared centroids only once.

    Args:
        indexes: FAISS indexes of the shards.
        queries: float32 (n, d).
        k: Number of neighbours.
        nprobe: Number of lists to search; ignored by flat indexes.
        selector: A faiss.IDSelector of the rows to consider; None for all.

    Returns:
        Similarities, float32 (n, k), descending, and rows, int64 (n, k), -1 if the lists held fewer.
    """
    faiss = load_faiss()
    if inverted_file(indexes[0]) is None:
        options = {} if selector is None else {"params": faiss.SearchParameters(sel=selector)}
        answers = [index.search(queries, k, **options) for index in indexes]
    else:
        rotated = queries
        if isinstance(indexes[0], faiss.IndexPreTransform):
            for number in range(indexes[0].chain.size()):
                rotated = indexes[0].chain.at(number).apply(rotated)
        rotated = np.ascontiguousarray(rotated)
        lists = inverted_file(indexes[0])
        nearest, centroids = lists.quantizer.search(rotated, nprobe)
        parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
        answers = [
            _search_lists(faiss, inverted_file(index), rotated, k, centroids, nearest, parameters)
            for index in indexes
        ]
    return answers[0] if len(answers) == 1 else merge_answers(answers, k)


def _search_lists(
    faiss: Any,
    lists: Any,
    queries: np.ndarray,
    k: int,
    centroids: np.ndarray,
    nearest: np.ndarray,
    parameters: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """IndexIVF.search_preassigned with parameters, which its Python wrapper does not accept."""
    similarities = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    arrays = (faiss.swig_ptr(array) for array in (centroids, nearest, similarities, rows))
    lists.search_preassigned_c(len(queries), faiss.swig_ptr(queries), k, *arrays, False, parameters)
    return similarities, rows
