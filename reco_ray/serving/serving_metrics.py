"""Counters and histograms on Ray's own Prometheus endpoint, all beginning with `reco_`."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ray.serve import metrics

_MILLISECONDS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000]

_IMAGES: list[float] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64]
_REQUEST_TAGS: Any = ("endpoint", "method", "code")  # Ray's annotation says one tag


@contextmanager
def _timed(histogram: metrics.Histogram, **tags: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    histogram.observe((time.perf_counter() - started) * 1000, tags=tags)


class ModelMetrics:
    """Metrics of a replica with models."""

    def __init__(self) -> None:
        self._batch = metrics.Histogram(
            "reco_batch_images",
            description="Images of a batch.",
            boundaries=_IMAGES,
        )
        self._stage = metrics.Histogram(
            "reco_stage_ms",
            description="Time of a stage: encode (a pass), score or the refinement (an image), build (a concept).",
            boundaries=_MILLISECONDS,
            tag_keys=("stage",),
        )

    def batch(self, images: int) -> None:
        """Records the size of a batch."""
        self._batch.observe(images)

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Records the duration of the block."""
        return _timed(self._stage, stage=stage)


class IngressMetrics:
    """Metrics of an ingress replica."""

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "reco_requests", description="Answered requests.", tag_keys=_REQUEST_TAGS
        )
        self._latency = metrics.Histogram(
            "reco_request_ms",
            description="From a request's headers to the end of its answer.",
            boundaries=_MILLISECONDS,
            tag_keys=("endpoint",),
        )
        self._images = metrics.Counter(
            "reco_labelled_images", description="Labelled images.", tag_keys=("vocabulary",)
        )
        self._queue = metrics.Gauge("reco_queue_images", description="Images waiting or computed here.")

    def request(self, endpoint: str, method: str, code: int, seconds: float) -> None:
        """Records an answered request. `endpoint` is the route's pattern, to limit the number of series."""
        self._requests.inc(tags={"endpoint": endpoint, "method": method, "code": str(code)})
        self._latency.observe(seconds * 1000, tags={"endpoint": endpoint})

    def image(self, vocabulary: str) -> None:
        """Counts a labelled image. vocabulary: its name, or "ad-hoc"."""
        self._images.inc(tags={"vocabulary": vocabulary})

    def queue(self, images: int) -> None:
        """Sets the number of images that wait or are computed."""
        self._queue.set(images)


class VocabularyMetrics:
    """Metrics of the vocabulary service."""

    def __init__(self) -> None:
        self._retrieval = metrics.Histogram(
            "reco_retrieval_ms", description="Time of a search in the index.", boundaries=_MILLISECONDS
        )
        self._built = metrics.Counter("reco_concepts_built", description="References made.")

    def search(self) -> AbstractContextManager[None]:
        """Records the duration of a search."""
        return _timed(self._retrieval)

    def built(self) -> None:
        """Counts a reference that was built."""
        self._built.inc()
