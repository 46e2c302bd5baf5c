"""Shared by all tests. pytest puts this folder on the path, so that they can import `images.py`."""

import os
from pathlib import Path

import pytest

# Two threads at most: the suite shares its machine with the Ray workers it starts.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own, and no folder of weights."""
    monkeypatch.setenv("RECO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECO_WEIGHTS", raising=False)
    return tmp_path / "cache"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests by the cluster that they share; those without come first, those with a browser last.

    A browser stays in the test process with an event loop, which must not be there when Ray starts.
    """
    items.sort(key=lambda item: ("browser" in getattr(item, "fixturenames", ()), _cpus(item)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if cpus := _cpus(item):
        from clusters import share_ray  # most tests need no Ray, and some run where it is not installed

        share_ray(cpus)


def _cpus(item: pytest.Item) -> int:
    """Logical CPUs of the Ray cluster that a test shares with others; 0 = it needs none or has its own."""
    marker = item.get_closest_marker("cpus")
    return marker.args[0] if marker else 0
