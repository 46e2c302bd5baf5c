"""Dynamic batching: what waits together is computed together, nothing waits for company."""

import asyncio
import threading

import pytest

from reco_ray.serving.batcher import Batcher
from reco_ray.serving.lru import ByteLRU


class Work:
    """Computes when it is let; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.begun.release()
        assert self.go.acquire(timeout=10)
        if 13 in items:
            raise ValueError("thirteen")
        return [-item for item in items]


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.begun.acquire, timeout=10)


def test_what_waits_while_all_lanes_are_busy_is_one_batch() -> None:
    async def run() -> None:
        work = Work()
        batcher: Batcher[int, int] = Batcher(work, lambda item: None, largest=3, lanes=1)
        first = asyncio.create_task(batcher(1))
        await begun(work)
        others = [asyncio.create_task(batcher(item)) for item in (2, 3, 4, 5)]
        await asyncio.sleep(0)
        assert len(batcher) == 4
        for _ in range(3):
            work.go.release()
        assert await asyncio.gather(first, *others) == [-1, -2, -3, -4, -5]
        assert work.batches == [[1], [2, 3, 4], [5]]

    asyncio.run(run())


def test_lanes_share_what_waits_and_kinds_are_not_mixed() -> None:
    async def run() -> None:
        work = Work()
        batcher: Batcher[int, int] = Batcher(work, lambda item: item % 2, largest=8, lanes=2)
        tasks = [asyncio.create_task(batcher(item)) for item in (10, 20)]
        await begun(work)
        await begun(work)
        tasks += [asyncio.create_task(batcher(item)) for item in (1, 2, 3, 4, 6, 8)]
        await asyncio.sleep(0)
        for _ in range(8):
            work.go.release()
        await asyncio.gather(*tasks)
        assert sorted(work.batches[:2]) == [[10], [20]]
        assert all(len({item % 2 for item in batch}) == 1 for batch in work.batches)
        assert work.batches[2] == [1, 3]  # the oldest, and one of its kind; at most its share of the six

    asyncio.run(run())


def test_an_error_reaches_its_batch_only_and_the_cancelled_are_dropped() -> None:
    async def run() -> None:
        work = Work()
        batcher: Batcher[int, int] = Batcher(work, lambda item: item, largest=8, lanes=1)
        first = asyncio.create_task(batcher(1))
        await begun(work)
        bad, given_up, good = (asyncio.create_task(batcher(item)) for item in (13, 7, 2))
        await asyncio.sleep(0)
        given_up.cancel()
        for _ in range(3):
            work.go.release()
        assert await good == -2
        assert await first == -1
        with pytest.raises(ValueError, match="thirteen"):
            await bad
        assert work.batches == [[1], [13], [2]]

    asyncio.run(run())


def test_a_cache_bound_in_bytes_forgets_what_was_unused_for_longest() -> None:
    cache: ByteLRU[str] = ByteLRU(100)
    cache.put("a", "A", 40)
    cache.put("b", "B", 40)
    assert cache.get("a") == "A"
    cache.put("c", "C", 40)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("A", None, "C")
    cache.put("huge", "H", 1000)
    assert (len(cache), cache.get("huge")) == (1, "H")
    cache.put("huge", "h", 10)
    cache.drop("nothing")
    cache.put("a", "A", 90)
    assert (cache.get("huge"), cache.get("a")) == ("h", "A")


def test_room_is_made_before_an_entry_comes() -> None:
    cache: ByteLRU[str] = ByteLRU(100)
    for name in "abc":
        cache.put(name, name, 30)
    assert cache.make_room(10) == []
    assert cache.get("a") == "a"
    assert cache.make_room(50) == ["b", "c"]
    assert cache.make_room(1000) == ["a"]  # it comes alone
    assert len(cache) == 0
