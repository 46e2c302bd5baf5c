"""Loads FAISS, and creates, serialises and copies its indexes."""

from types import ModuleType
from typing import Any

import numpy as np

from reco_ray.errors import MissingPackageError, SettingError, reason


def load_faiss() -> ModuleType:
    """Imports faiss, from whichever package provides it.

    Raises:
        MissingPackageError: If none is installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError(
            'FAISS is not installed: pip install "reco-ray[cpu]", or "reco-ray[gpu]" on a GPU machine'
        ) from error
    return faiss


def empty_index(factory: str, dim: int) -> Any:
    """Creates an untrained inner-product index with explicit 64-bit ids.

    Args:
        factory: "Flat", or a FAISS factory string of an inverted file: "IVF4096,SQ8", "RR512,IVF65536_HNSW32,RaBitQ2".
        dim: Number of dimensions.

    Raises:
        SettingError: If FAISS cannot create it for `dim` dimensions, or it is of another kind.
    """
    faiss = load_faiss()
    flat = factory == "Flat"
    try:
        # A flat index stores no ids itself.
        made = faiss.index_factory(dim, "IDMap,Flat" if flat else factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise SettingError(
            f"setting index.factory: FAISS cannot create {factory!r} with {dim} dimensions ({_last(error)})"
        ) from error
    if not flat and inverted_file(made) is None:
        raise SettingError(
            f"setting index.factory: {factory!r} is neither Flat nor an inverted file such as IVF4096,SQ8"
        )
    return made


def inverted_file(index: Any) -> Any:
    """The IndexIVF inside an index; None for a flat index."""
    faiss = load_faiss()
    found = faiss.try_extract_index_ivf(index)
    return None if found is None else faiss.downcast_index(found)


def without_centroids(index: Any) -> np.ndarray:
    """Serialises an index without its centroids, which all shards share (300 MB for a graph of 100,000); uint8 (n,)."""
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
    """Makes an index stored without centroids use those of `trained`, which must outlive it."""
    lists = inverted_file(index)
    lists.own_fields = False
    lists.quantizer = inverted_file(trained).quantizer


def on_gpus(index: Any) -> Any:
    """Copies an index to all GPUs; without GPUs, or with a faiss for CPUs, returns the index itself."""
    faiss = load_faiss()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return faiss.index_cpu_to_all_gpus(index) if gpus else index


def _last(error: RuntimeError) -> str:
    """FAISS's message without the source location."""
    return reason(error).rpartition(": ")[2] or "no reason given"
