"""Dynamic batching: a thread that becomes free takes the items that are waiting.

Ray's `serve.batch` closes a batch after a timeout even while every worker is busy, so that under load batches hold one
item. Here a batch is closed when a thread is free to compute it, and no item waits for a batch to fill.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs `compute` over batches in `lanes` threads.

    Args:
        compute: maps items to results, in order; an exception is raised for every item of the batch.
        kind: only items of the same kind share a batch.
        largest: maximum number of items in a batch.
        lanes: number of threads.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], list[Result]],
        kind: Callable[[Item], Hashable],
        *,
        largest: int,
        lanes: int,
    ) -> None:
        self._compute, self._kind, self._largest, self._lanes = compute, kind, largest, lanes
        self._pool = ThreadPoolExecutor(lanes, "lane")
        self._free = lanes
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Number of waiting items."""
        return len(self._waiting)

    async def __call__(self, item: Item) -> Result:
        """The item's result, once its batch has been computed."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._start()
        return await future

    def _start(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._run(self._take()))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        """Removes the next batch from the queue: the oldest item and others of its kind, at most a lane's share.

        Cancelled items are dropped.
        """
        most = min(self._largest, -(-len(self._waiting) // self._lanes))
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        others: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        for entry in self._waiting:
            if entry[1].cancelled():
                continue
            if batch and (len(batch) == most or self._kind(entry[0]) != self._kind(batch[0][0])):
                others.append(entry)
            else:
                batch.append(entry)
        self._waiting = others
        return batch

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            if batch:
                items = [item for item, _ in batch]
                results = await asyncio.get_running_loop().run_in_executor(self._pool, self._compute, items)
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._free += 1
            self._start()
