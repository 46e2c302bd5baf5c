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
