"""A cache bound in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteLRU(Generic[Value]):
    """Keeps what was used last, as long as all of it together fits.

    Threads may share it. What is larger than `limit` by itself is kept until the next entry comes: it is in use.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Of all entries."""
        return self._used

    def get(self, key: Hashable) -> Value | None:
        """The entry, which counts as used now."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Adds or replaces an entry of `size` bytes; those unused for longest make room."""
        with self._lock:
            self.drop(key)
            self._entries[key] = (value, size)
            self._used += size
            while self._used > self._limit and len(self._entries) > 1:
                self.drop(next(iter(self._entries)))

    def drop(self, key: Hashable) -> None:
        """Removes an entry, if it is there."""
        with self._lock:
            if key in self._entries:
                self._used -= self._entries.pop(key)[1]
