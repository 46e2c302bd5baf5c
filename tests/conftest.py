"""Shared by all tests. `images.py` beside this file is importable because pytest puts this folder on the path."""

import os

# Two threads at most: the suite shares its machine with the Ray workers it starts.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
