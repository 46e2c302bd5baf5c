"""The benchmarks by name; beside this file, their classes as plain text."""

from importlib import import_module

from reco_ray.errors import RecoError
from reco_ray.evaluation.dataset import Dataset

READERS = {"voc-coseg": "reco_ray.evaluation.voc_coseg:read"}


def open_benchmark(name: str, data: str) -> Dataset:
    """Opens a benchmark in its official folder layout.

    Raises:
        RecoError: unknown name, or files missing; says which.
    """
    if name not in READERS:
        raise RecoError(f"unknown benchmark {name!r}: choose one of {', '.join(sorted(READERS))}")
    module, _, function = READERS[name].partition(":")
    return getattr(import_module(module), function)(data)
