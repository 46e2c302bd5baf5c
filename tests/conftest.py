"""Shared by all tests. pytest puts this folder on the path, so that they can import `images.py`."""

import os

import pytest

# Two threads at most: the suite shares its machine with the Ray workers it starts.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For `pytest -n 2 --dist loadgroup`: the tests of a file share a cluster, those of tests/web one server."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            folder = item.path.parent.name
            group = folder if folder == "web" else f"{folder}/{item.path.name}"
            item.add_marker(pytest.mark.xdist_group(group))
