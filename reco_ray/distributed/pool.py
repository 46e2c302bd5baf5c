"""The worker pool of a stage on the connected cluster, with a progress bar and run statistics."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa

from reco_ray.config import StagePlacement
from reco_ray.distributed.parts import R, Worker, run_parts, run_shards
from reco_ray.distributed.timing import Meter
from reco_ray.distributed.workers import Workers, count_readers, plan_workers
from reco_ray.presentation.console import progress


class Pool:
    """Runs shards or parts of one stage; created by `stage_pool`."""

    def __init__(self, device: str, placement: StagePlacement, advance: Callable[[int], None]) -> None:
        self._device, self._placement, self._advance = device, placement, advance
        self._workers: Workers | None = None
        self._readers: int | None = None
        self.meter = Meter()

    def shards(
        self, shards: Mapping[str, pa.Table], load: Callable[[pa.Table], pa.Table], worker: Worker[R]
    ) -> Iterator[R]:
        """Computes shards whose rows are in memory, as `run_shards` does."""
        if shards:
            self._workers = plan_workers(self._device, len(shards), self._placement)
            yield from self._shown(run_shards(dict(shards), load, worker, self._workers, self.meter))

    def run(
        self, shards: Mapping[str, pa.Table], load: Callable[[pa.Table], pa.Table], worker: Worker[R]
    ) -> None:
        """Computes `shards` and discards their reports."""
        for _ in self.shards(shards, load, worker):
            pass

    def parts(
        self,
        units: list[pa.Table],
        load: Callable[[pa.Table], Iterator[tuple[str, pa.Table]]],
        worker: Worker[R],
        workers: Workers,
        readers: int,
        loaders: int | None = None,
    ) -> Iterator[R]:
        """Computes units whose number of parts is known only after loading, as `run_parts` does.

        Args:
            units: arguments of `load`.
            load: yields the parts of a unit.
            worker: computes and commits the parts.
            workers: the processes of the pool.
            readers: expected number of concurrent calls of `load`, for the statistics.
            loaders: limit of that number; None = no limit.
        """
        self._workers, self._readers = workers, readers
        yield from self._shown(run_parts(units, load, worker, workers, loaders, self.meter))

    def statistics(self) -> dict[str, float | str]:
        """Statistics of the run so far, for `summary.json`."""
        workers = self._workers or plan_workers(self._device, 1, self._placement)
        return self.meter.run(workers, self._readers or count_readers(workers))

    def _shown(self, reports: Iterator[R]) -> Iterator[R]:
        for report in reports:
            self._advance(report.items)
            yield report


@contextmanager
def stage_pool(
    label: str, device: str, placement: StagePlacement, total: int | None, done: int = 0
) -> Iterator[Pool]:
    """Context manager for the pool of a stage, with a progress bar.

    Args:
        label: of the progress bar.
        device: `models.device`.
        placement: resources of the workers.
        total: number of items of the stage; None if unknown.
        done: number of items committed by earlier runs.
    """
    with progress(label, total, done) as advance:
        yield Pool(device, placement, advance)
