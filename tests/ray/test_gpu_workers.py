"""Pools on a cluster with pretended GPUs: they run beside their readers, and no process keeps a GPU for later work."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from clusters import local_ray

from reco_ray.config import StagePlacement
from reco_ray.distributed.parts import Report, Worker, cut
from reco_ray.distributed.pool import stage_pool
from reco_ray.distributed.workers import plan_workers
from reco_ray.errors import NoRoomError
from reco_ray.sweeps.shared_tasks import SharedTasks


@pytest.fixture(scope="module", autouse=True)
def two_gpus_and_one_cpu() -> Iterator[None]:
    with local_ray(cpus=1, gpus=2):
        yield


def test_workers_that_share_gpus_leave_a_cpu_to_the_readers(tmp_path: Path) -> None:
    class Note(Worker[Report]):
        report = Report

        def set_up(self, device: str) -> None:
            self._device = device

        def work(self, name: str, rows: pa.Table) -> Report:
            gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            (tmp_path / name).write_text(f"{self._device} {gpu}")
            return Report(rows.num_rows)

    rows = pa.table({"number": list(range(8))})
    with stage_pool("test", "cuda", StagePlacement(gpus_per_worker=0.5), 8) as pool:
        pool.run(cut(rows, 1), lambda table: table, Note())
    notes = [file.read_text().split() for file in tmp_path.iterdir()]
    assert len(notes) == 8
    assert {device for device, _ in notes} == {"cuda"}
    assert {gpu for _, gpu in notes} <= {"0", "1"}


def test_a_pool_without_room_for_a_reader_is_refused() -> None:
    with pytest.raises(NoRoomError, match="1 CPUs and 1 GPUs, beside a reader"):
        plan_workers("cuda", placement=StagePlacement(cpus_per_worker=1))


def test_a_process_that_had_a_gpu_is_not_used_for_other_tasks() -> None:
    def gpu_and_process() -> tuple[str, int]:
        return os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.getpid()

    shared: Any = SharedTasks(plan_workers("cuda"))
    found = [ray.get(shared._submit(gpu_and_process, results=1))[0] for _ in range(3)]
    assert all(gpu in ("0", "1") for gpu, _ in found)
    assert len({process for _, process in found}) == 3
