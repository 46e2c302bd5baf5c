"""The heap of a process that computes all day: what it keeps between passes, and when the rest goes back."""

import ctypes
import sys
import threading
import time

# glibc gives large blocks back to the kernel as soon as they are free, so that every pass of a network pays for some
# 10,000 page faults, 3 to 12 % of its time. Kept instead, in one heap for all threads; set before the process starts.
# Blocks of 32 MB, which is the most that glibc accepts, and more still come and go: between small ones that stay, they
# would leave gaps that nothing fits into, and the heap would grow by some 20 MB a minute.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
_SECONDS = 60.0


def start_heap_trimming() -> None:
    """Starts a thread that gives the heap's free pages back, once a minute; nothing where the C library cannot.

    Between small blocks that stay, the large ones of a network leave gaps that the next ones do not fit into: what is
    in use stays the same while the heap grows, by 180 MB in three minutes under load (docs/results.md). The kernel
    takes the pages of these gaps too, not only those at the end.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:  # glibc's own: musl has none
        return

    def run() -> None:
        while True:
            time.sleep(_SECONDS)
            trim(0)

    threading.Thread(target=run, name="heap", daemon=True).start()
