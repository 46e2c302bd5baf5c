"""Shared by all tests. pytest puts this folder on the path, so that they can import `images.py`."""

import os

# Two threads at most: the suite shares its machine with the Ray workers it starts.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
