"""Prometheus metrics of a stage: images by outcome, and their rate."""

from collections.abc import Mapping
from functools import lru_cache

from ray.util.metrics import Counter, Gauge


def images(stage: str, count: int, duplicates: int, rejected: Mapping[str, int]) -> None:
    """Counts the `count` images of a committed part. Called in the driver, so that a retried part counts once."""
    outcomes = {"duplicate": duplicates, "rejected": sum(rejected.values())}
    outcomes["done"] = count - sum(outcomes.values())
    counter = _counter("reco_images", "images by stage and what became of them", ("stage", "outcome"))
    for outcome, number in outcomes.items():
        if number:
            counter.inc(number, {"stage": stage, "outcome": outcome})
    reasons = _counter("reco_rejected_images", "rejected images by stage and reason", ("stage", "reason"))
    for reason, number in rejected.items():
        reasons.inc(number, {"stage": stage, "reason": reason})


def rate(stage: str, images_per_second: float) -> None:
    """The mean rate of the running stage."""
    _gauge("reco_images_per_second", "images a second of the running stage, its mean", ("stage",)).set(
        images_per_second, {"stage": stage}
    )


@lru_cache
def _counter(name: str, description: str, tags: tuple[str, ...]) -> Counter:
    return Counter(name, description=description, tag_keys=tags)


@lru_cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Gauge:
    return Gauge(name, description=description, tag_keys=tags)
