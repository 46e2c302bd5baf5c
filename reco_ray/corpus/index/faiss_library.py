"""FAISS itself: whichever package provides it, and what it makes of a factory string."""

from types import ModuleType
from typing import Any

import numpy as np

from reco_ray.errors import RecoError, reason

KIND = "index"


def load_faiss() -> ModuleType:
    """The faiss module, whichever package provides it.

    Raises:
        RecoError: none is installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise RecoError(
            'FAISS is not installed: pip install "reco-ray[cpu]", or "reco-ray[gpu]" on a GPU machine'
        ) from error
    return faiss


def empty_index(factory: str, dim: int) -> Any:
    """An untrained index by inner product that takes explicit 64-bit ids.

    Args:
        factory: "Flat", or an inverted file in FAISS's notation: "IVF4096,SQ8", "RR512,IVF65536_HNSW32,RaBitQ2".

    Raises:
        RecoError: FAISS cannot make this of vectors of `dim`, or it is of another kind.
    """
    faiss = load_faiss()
    flat = factory == "Flat"
    try:
        # Flat stores no ids by itself.
        made = faiss.index_factory(dim, "IDMap,Flat" if flat else factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise RecoError(
            f"setting index.factory: FAISS makes no {factory!r} of {dim} dimensions ({_last(error)})"
        ) from error
    if not flat and inverted_file(made) is None:
        raise RecoError(
            f"setting index.factory: {factory!r} is neither Flat nor an inverted file such as IVF4096,SQ8"
        )
    return made


def inverted_file(index: Any) -> Any:
    """The IndexIVF inside an index, None for a flat one."""
    faiss = load_faiss()
    found = faiss.try_extract_index_ivf(index)
    return None if found is None else faiss.downcast_index(found)


def without_centroids(index: Any) -> np.ndarray:
    """The index serialised, uint8, without what all shards share: a graph of 100,000 centroids is 300 MB a shard."""
    faiss = load_faiss()
    lists = inverted_file(index)
    if lists is None:
        return faiss.serialize_index(index)
    centroids = lists.quantizer
    lists.own_fields = False
    lists.quantizer = faiss.IndexFlatIP(lists.d)
    try:
        return faiss.serialize_index(index)
    finally:
        lists.quantizer = centroids
        lists.own_fields = True


def share_centroids(index: Any, trained: Any) -> None:
    """Gives an index that was stored without centroids those of another, which must outlive it."""
    lists = inverted_file(index)
    lists.own_fields = False
    lists.quantizer = inverted_file(trained).quantizer


def on_gpus(index: Any) -> Any:
    """The index copied to all GPUs, if this faiss has GPUs and the machine too; else the index itself."""
    faiss = load_faiss()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return faiss.index_cpu_to_all_gpus(index) if gpus else index


def _last(error: RuntimeError) -> str:
    """FAISS's message without the place in its source."""
    return reason(error).rpartition(": ")[2] or "no reason given"
