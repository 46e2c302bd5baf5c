"""The heap of a serving process, in a process of its own that has the server's settings of glibc."""

import os
import platform
import subprocess
import sys

import pytest

from reco_ray.serving.heap_trimming import KEEP_MEMORY

_GAPS = """
import resource, time
from pathlib import Path

import numpy as np

from reco_ray.serving import heap_trimming

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

heap_trimming._SECONDS = 0.2
blocks = [np.ones(2**20, np.uint8) for _ in range(200)]
kept = blocks[::20]
full = resident()
del blocks
freed = resident()
heap_trimming.start_heap_trimming()
deadline = time.monotonic() + 20
while resident() > full - 150 * 2**20 and time.monotonic() < deadline:
    time.sleep(0.05)
print(full - freed, full - resident(), sum(int(block.sum()) for block in kept))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc can give back what lies in the middle"
)
def test_gaps_between_what_stays_are_given_back():
    done = subprocess.run(
        [sys.executable, "-c", _GAPS],
        env=os.environ | KEEP_MEMORY,
        capture_output=True,
        text=True,
        check=True,
    )
    by_itself, given_back, untouched = map(int, done.stdout.split())
    assert by_itself < 20 * 2**20  # what the test is about: freed blocks stay with the process
    assert given_back > 150 * 2**20
    assert untouched == 10 * 2**20
