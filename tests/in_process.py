"""Stages whose loaders and workers run in the test process, where the distribution over Ray is not what is tested.

A worker process takes seconds to import torch and others; tests/ray/test_embed.py and test_run.py have real ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pytest
import torch
from ray import cloudpickle

from reco_ray.distributed import parts, pool
from reco_ray.distributed.parts import R, Worker
from reco_ray.distributed.timing import Meter
from reco_ray.distributed.workers import Workers
from reco_ray.files import slow_requests


@contextmanager
def stages_in_process() -> Iterator[None]:
    """Replaces Ray Data's pipeline; everything else of a stage is what it is."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for module in (parts, pool):
            patch.setattr(module, "run_parts", _run_parts)
        patch.setattr(slow_requests, "print_line", slow_requests.print_line)  # workers set it
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _run_parts(
    units: list[pa.Table],
    load: Callable[[pa.Table], Iterator[tuple[str, pa.Table]]],
    worker: Worker[R],
    workers: Workers,
    loaders: int | None = None,
    meter: Meter | None = None,
) -> Iterator[R]:
    """`run_parts` with its own loading task and worker, one part after another; both are sent as Ray would."""
    if not units:
        return
    actor = parts._WorkerActor(cloudpickle.dumps(worker), workers.threads, workers.device)
    task = parts._LoadTask(cloudpickle.loads(cloudpickle.dumps(load)))
    rows = (row for unit in units for part in task(unit) for row in actor(part).to_pylist())
    yield from parts._reports(rows, worker.report, meter)
