"""A stage's work cut into shards: loaded by tasks, computed by a pool of model workers, committed one by one.

One block is one shard all the way through, so a shard is computed and written by one call and a retry of that
call writes the same files again.
"""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from reco_ray.cluster import READER_CPUS, Workers
from reco_ray.errors import RecoError

# Ray Data tells the terminal of every plan and error; its log file in the session's directory has it all.
for _handler in logging.getLogger("ray.data").handlers:
    if isinstance(_handler, logging.StreamHandler):
        _handler.setLevel(logging.CRITICAL + 1)

Shard: TypeAlias = pa.Table


def cut(table: pa.Table, size: int) -> dict[str, Shard]:
    """Cuts a table into named shards of at most `size` rows: "000000", "000001", ..."""
    starts = range(0, table.num_rows, size)
    return {f"{number:06d}": table.slice(start, size) for number, start in enumerate(starts)}


def run_shards(
    shards: dict[str, Shard],
    load: Callable[[pa.Table], pa.Table],
    worker: type,
    worker_kwargs: dict[str, Any],
    workers: Workers,
) -> Iterator[dict[str, Any]]:
    """Streams shards through `load` (tasks) and `worker` (a pool of actors) over the connected cluster.

    Args:
        shards: by name; nothing is done for an empty mapping.
        load: rows of a shard -> the rows that the worker gets, e.g. with decoded pixels.
        worker: a class; `worker(threads=, device=, **worker_kwargs)(shard name, loaded rows) -> dict` commits
            the shard and returns what to report of it, as far as JSON goes.

    Yields:
        What the worker returned, in the order in which shards finish.

    Raises:
        RecoError: as raised by the worker.
    """
    if not shards:
        return
    context = copy.deepcopy(DataContext.get_current())
    context.target_max_block_size = None  # never split a shard
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    with DataContext.current(context):
        named = [_named(name, shard) for name, shard in shards.items()]
        dataset = (
            ray.data.from_arrow(named)
            .map_batches(
                _Loaded(load),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=READER_CPUS,
                resources=workers.reader_resources,
            )
            .map_batches(
                _Worker,
                fn_constructor_args=(
                    worker,
                    {"threads": workers.threads, "device": workers.device, **worker_kwargs},
                ),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=min(workers.count, len(shards))),
                num_cpus=workers.cpus,
                num_gpus=workers.gpus,
                resources=workers.resources,
            )
        )
        for row in dataset.iter_rows():
            if row["error"] is not None:
                raise RecoError(row["error"])
            yield json.loads(row["result"])


_SHARD_COLUMN = "__shard__"
_RESULT_SCHEMA = pa.schema([("result", pa.string()), ("error", pa.string())])


def _named(name: str, shard: Shard) -> pa.Table:
    return shard.append_column(_SHARD_COLUMN, pa.array([name] * shard.num_rows))


class _Loaded:
    """Applies `load` and carries the shard's name along."""

    def __init__(self, load: Callable[[pa.Table], pa.Table]) -> None:
        self._load = load

    def __call__(self, table: pa.Table) -> pa.Table:
        return _named(table[_SHARD_COLUMN][0].as_py(), self._load(table))


class _Worker:
    """The actor: builds the stage's worker once, then computes whole shards.

    A user's error, also one while a model loads, travels as a row: Ray would bring it back as text in a traceback.
    """

    def __init__(self, worker: type, kwargs: dict[str, Any]) -> None:
        self._worker, self._error = None, None
        try:
            self._worker = worker(**kwargs)
        except RecoError as error:
            self._error = str(error)

    def __call__(self, table: pa.Table) -> pa.Table:
        names = table[_SHARD_COLUMN].unique().to_pylist()
        if len(names) != 1:
            raise RuntimeError(f"one block holds the rows of {len(names)} shards")
        row = {"result": None, "error": self._error}
        if self._worker is not None:
            try:
                row["result"] = json.dumps(self._worker(names[0], table))
            except RecoError as error:
                row["error"] = str(error)
        return pa.Table.from_pylist([row], schema=_RESULT_SCHEMA)
