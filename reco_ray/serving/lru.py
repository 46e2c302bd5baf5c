"""An LRU cache bounded by the total size of its entries."""

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class ByteLRU(Generic[Value]):
    """Keeps the most recently used entries within a total size. Thread-safe.

    Args:
        limit: bytes. A larger entry is kept alone, until the next one is added.
    """

    def __init__(self, limit: int) -> None:
        self._entries: LRUCache[Hashable, tuple[Value, int]] = LRUCache(
            limit, getsizeof=lambda entry: entry[1]
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        """The entry, marked as used, or None."""
        with self._lock:
            entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Adds or replaces an entry of `size` bytes; evicts the least recently used ones."""
        with self._lock:
            self._entries[key] = (value, min(size, int(self._entries.maxsize)))

    def make_room(self, size: int) -> list[Hashable]:
        """Removes the entries unused for longest until `size` bytes fit beside the others -> their keys."""
        removed = []
        with self._lock:
            while self._entries and self._entries.currsize + size > self._entries.maxsize:
                removed.append(self._entries.popitem()[0])
        return removed

    def drop(self, key: Hashable) -> None:
        """Removes an entry, if it exists."""
        with self._lock:
            self._entries.pop(key, None)
