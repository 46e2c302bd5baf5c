"""Runs a stage in shards: loaded by tasks, computed by a pool of model workers, committed one by one.

A part, the unit of commit, is one block throughout, so that one call computes and writes it, and a retry of that call
writes the same files.
"""

import gc
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

import pyarrow as pa
import ray
from pydantic import TypeAdapter
from ray import cloudpickle
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from reco_ray.distributed import worker_messages
from reco_ray.distributed.streaming import stream_context, with_timeout
from reco_ray.distributed.timing import Meter
from reco_ray.distributed.workers import READER_CPUS, Workers, report_missing_resources
from reco_ray.errors import NoRoomError, RecoError, out_of_memory, pack, reason, unpack
from reco_ray.files import slow_requests
from reco_ray.files.checksums import with_checksums

# Ray Data logs plans and errors to the terminal; its log file in the session's directory keeps them.
for _handler in logging.getLogger("ray.data").handlers:
    if isinstance(_handler, logging.StreamHandler):
        _handler.setLevel(logging.CRITICAL + 1)

Shard: TypeAlias = pa.Table


@dataclass(frozen=True)
class Report:
    """A worker's report of a part; subclasses add fields of plain values, lists and dictionaries.

    items: number of items in the part, in the stage's unit.
    """

    items: int


R = TypeVar("R", bound=Report)


class Worker(ABC, Generic[R]):
    """Computes the loaded parts of a stage.

    Created in the driver, where the constructor only stores its arguments, and sent to each process of the pool, which
    calls `set_up` once and `work` for each part.
    """

    report: type[R]

    @abstractmethod
    def set_up(self, device: str) -> None:
        """Loads models onto a device; the number of torch's threads is already set."""

    @abstractmethod
    def work(self, name: str, rows: pa.Table) -> R:
        """Computes one part and commits its files.

        Args:
            name: of the part.
            rows: returned by the stage's loader.
        """


def cut(table: pa.Table, size: int) -> dict[str, Shard]:
    """Cuts a table into named shards of at most `size` rows: "000000", "000001", ..."""
    starts = range(0, table.num_rows, size)
    return {f"{number:06d}": table.slice(start, size) for number, start in enumerate(starts)}


def run_shards(
    shards: dict[str, Shard],
    load: Callable[[pa.Table], pa.Table],
    worker: Worker[R],
    workers: Workers,
    meter: Meter | None = None,
) -> Iterator[R]:
    """`run_parts` for shards whose rows are in memory, each of which is one part; `load` maps rows to loaded rows."""
    units = [
        shard.append_column(_SHARD_COLUMN, pa.array([name] * shard.num_rows))
        for name, shard in shards.items()
    ]
    workers = replace(workers, count=min(workers.count, max(1, len(shards))))
    return run_parts(units, _OnePartPerUnit(load), worker, workers, meter=meter)


def run_parts(
    units: list[pa.Table],
    load: Callable[[pa.Table], Iterator[tuple[str, pa.Table]]],
    worker: Worker[R],
    workers: Workers,
    loaders: int | None = None,
    meter: Meter | None = None,
) -> Iterator[R]:
    """Streams units of work through `load` (tasks) and `worker` (a pool of actors) over the connected cluster.

    Args:
        units: arguments of `load`, a few rows each that describe what to read. All are objects in the cluster's store
            from the start, so there should be at most some thousands.
        load: yields the name and the loaded rows of each part of a unit. Must be deterministic, as it is called again
            after a failure.
        worker: computes and commits the parts.
        workers: number of processes and their resources.
        loaders: maximum number of concurrent calls of `load` in the cluster.
        meter: sums up the durations of the parts.

    Yields:
        The worker's reports, in the order in which parts finish.

    Raises:
        RecoError: raised by `load` or by the worker.
    """
    if not units:
        return
    context = stream_context()
    context.target_max_block_size = 1  # each part is one row, and so a block of its own
    with DataContext.current(context):
        dataset = (
            # Not from_arrow, which measures the size of each unit in a task: 15 seconds for 2,000 units.
            ray.data.from_blocks(units)
            .map_batches(
                _LoadTask(load),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=READER_CPUS,
                resources=workers.reader_resources,
                compute=TaskPoolStrategy(min(loaders, len(units))) if loaders else None,
            )
            .map_batches(
                _WorkerActor,
                fn_constructor_args=(cloudpickle.dumps(worker), workers.threads, workers.device),
                batch_size=1,  # a part; Ray refuses None, which means the same here, with GPUs
                batch_format="pyarrow",
                # The number of parts in a container is unknown until it is read, so the pool may grow beyond the units.
                compute=ActorPoolStrategy(min_size=min(workers.count, len(units)), max_size=workers.count),
                num_cpus=workers.cpus,
                num_gpus=workers.gpus,
                resources=workers.resources,
            )
        )
        report_missing_resources(workers)
        # Twice Ray's own timeout, which any block resets, while this one waits for a whole part.
        limit = 2 * context.execution_no_progress_timeout_s
        with closing(with_timeout(iter(dataset.iter_rows()), limit, worker_messages.print_posted)) as rows:
            yield from _reports(rows, worker.report, meter)


def _reports(rows: Iterable[Mapping[str, Any]], report: type[R], meter: Meter | None) -> Iterator[R]:
    """The reports in the rows that `_WorkerActor` returned; an error in one is raised."""
    reports = TypeAdapter(report)
    for row in rows:
        if row["error"] is not None:
            raise unpack(row["error"])
        if meter is not None:
            meter.add(*row["seconds"])
        yield reports.validate_json(row["result"])


_SHARD_COLUMN = "__shard__"
_SECONDS = pa.list_(pa.float64())
_RESULT_SCHEMA = pa.schema([("result", pa.string()), ("error", pa.string()), ("seconds", _SECONDS)])


def _error_message(error: Exception) -> str:
    """An error that its user can mend, packed; any other is raised again."""
    if isinstance(error, RecoError):
        return pack(error)
    if out_of_memory(error):
        line = (
            f"out of memory on node {ray.util.get_node_ip_address()} ({reason(error)}): fewer workers a node or GPU "
            "(placement), smaller batches or images; the same command goes on"
        )
        return pack(NoRoomError(line))
    raise error


class _OnePartPerUnit:
    """Loads a unit as one part, named by its rows."""

    def __init__(self, load: Callable[[pa.Table], pa.Table]) -> None:
        self._load = load

    def __call__(self, unit: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        name = unit[_SHARD_COLUMN][0].as_py()
        yield name, self._load(unit.drop_columns([_SHARD_COLUMN]))


class _LoadTask:
    """Applies `load`. A part is sent as one row with its table in one cell, so that Ray does not split it."""

    def __init__(self, load: Callable[[pa.Table], Iterator[tuple[str, pa.Table]]]) -> None:
        self._load = load

    def __call__(self, unit: pa.Table) -> Iterator[pa.Table]:
        slow_requests.print_line = worker_messages.post
        try:
            clock, cpu = time.perf_counter(), time.process_time()
            for name, rows in self._load(unit):
                yield _packed(name, rows, [time.perf_counter() - clock, time.process_time() - cpu])
                clock, cpu = time.perf_counter(), time.process_time()
        except Exception as error:
            yield _row(None, _error_message(error), pa.nulls(1), [])


def _packed(name: str, rows: pa.Table, seconds: list[float]) -> pa.Table:
    struct = rows.to_struct_array().combine_chunks()
    if isinstance(struct, pa.ChunkedArray):
        struct = pa.concat_arrays(struct.chunks) if struct.num_chunks else pa.nulls(0, struct.type)
    cell = pa.LargeListArray.from_arrays(pa.array([0, len(struct)], pa.int64()), struct)
    return _row(name, None, cell, seconds)


def _row(name: str | None, error: str | None, cell: pa.Array, seconds: list[float]) -> pa.Table:
    """seconds: wall-clock and CPU time of loading the part."""
    columns = {"name": pa.array([name], pa.string()), "error": pa.array([error], pa.string()), "rows": cell}
    return pa.table({**columns, "seconds": pa.array([seconds], _SECONDS)})


def _unpacked(cell: pa.LargeListArray) -> pa.Table:
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(cell.flatten())])


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pauses Python's garbage collector.

    Importing torch, timm and others creates many objects that stay, and looking through them for garbage again and
    again takes a quarter of the time of a worker's start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _WorkerActor(Generic[R]):
    """The actor: sets up the stage's worker once, then computes whole parts.

    Errors are returned as rows, also those of `set_up`: Ray would return them as text in a traceback.
    """

    def __init__(self, pickled: bytes, threads: int, device: str) -> None:
        slow_requests.print_line = worker_messages.post
        self._error = None
        with _collector_paused():
            import torch  # not above, as processes that only read need no torch

            worker: Worker[R] = cloudpickle.loads(pickled)
            torch.set_num_threads(threads)
            try:
                worker.set_up(device)
            except Exception as error:
                self._error = _error_message(error)
        self._worker, self._reports = worker, TypeAdapter(worker.report)

    def __call__(self, parts: pa.Table) -> pa.Table:
        results = [self._compute(part) for part in parts.to_batches(max_chunksize=1)]
        return pa.Table.from_pylist(results, schema=_RESULT_SCHEMA)

    def _compute(self, part: pa.RecordBatch) -> dict[str, object]:
        name, error = part["name"][0].as_py(), part["error"][0].as_py() or self._error
        if error:
            return {"result": None, "error": error}
        clock = time.perf_counter()
        try:
            report = with_checksums(self._worker.work, name, _unpacked(part["rows"]))
        except Exception as problem:
            return {"result": None, "error": _error_message(problem)}
        seconds = [*part["seconds"][0].as_py(), time.perf_counter() - clock]
        return {"result": self._reports.dump_json(report).decode(), "error": None, "seconds": seconds}
