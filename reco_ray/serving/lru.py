"""A cache bounded in bytes."""

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class ByteLRU(Generic[Value]):
    """Keeps the entries used last, as long as all of them together fit; threads may share it.

    Args:
        limit: bytes. An entry larger than that is kept alone, until the next one comes.
    """

    def __init__(self, limit: int) -> None:
        self._entries: LRUCache[Hashable, tuple[Value, int]] = LRUCache(
            limit, getsizeof=lambda entry: entry[1]
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        """The entry, which counts as used now."""
        with self._lock:
            entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Adds or replaces an entry of `size` bytes; those unused for longest make room."""
        with self._lock:
            self._entries[key] = (value, min(size, int(self._entries.maxsize)))

    def drop(self, key: Hashable) -> None:
        """Removes an entry, if it is there."""
        with self._lock:
            self._entries.pop(key, None)
