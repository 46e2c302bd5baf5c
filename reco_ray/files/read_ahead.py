"""Reads ahead in threads, in order and with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 8, ahead: int = 16
) -> Iterator[Result]:
    """`map` in threads, in order, with at most `ahead` results waiting; exceptions are raised at their item."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # the caller stopped early: cancel what has not started
                future.cancel()


_END: Any = object()


def iterated_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yields the same items, produced in a thread at most 16 in advance."""
    source = iter(items)
    for item in prefetched(lambda _: next(source, _END), count(), threads=1):
        if item is _END:
            return
        yield item
