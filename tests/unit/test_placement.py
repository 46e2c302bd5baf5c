"""What a stage's workers ask of a cluster."""

import pytest

from reco_ray.config import StagePlacement, load_settings
from reco_ray.distributed.workers import plan_workers
from reco_ray.errors import RecoError

GPUS = [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0, "model": 1.0}]


def test_without_placement_there_is_a_worker_a_gpu_or_a_cpu() -> None:
    workers = plan_workers(nodes=GPUS)
    assert (workers.count, workers.cpus, workers.gpus, workers.threads) == (2, 1.0, 1.0, 1)
    workers = plan_workers("cpu", nodes=[{"CPU": 5.0, "GPU": 2.0}])
    assert (workers.count, workers.cpus, workers.gpus, workers.threads) == (5, 0.75, 0.0, 1)
    assert workers.resources == workers.reader_resources == {}


def test_a_worker_fits_a_node() -> None:
    large = plan_workers("cpu", nodes=[{"CPU": 8.0}, {"CPU": 4.0}])
    assert (large.count, large.cpus, large.threads) == (3, 3.0, 4)
    small = plan_workers("cpu", nodes=[{"CPU": 2.0}] * 10)
    assert (small.count, small.cpus, small.threads) == (20, 0.75, 1)


def test_workers_share_gpus_as_far_as_their_other_resources_reach() -> None:
    half = StagePlacement(gpus_per_worker=0.5, worker_resources={"model": 0.5}, reader_resources={"CPU": 1})
    workers = plan_workers(placement=half, nodes=GPUS)
    assert (workers.count, workers.gpus) == (2, 0.5)  # four fit on the GPUs, two have a model
    assert workers.resources == {"model": 0.5}
    several = plan_workers(placement=StagePlacement(gpus_per_worker=2, cpus_per_worker=3), nodes=GPUS)
    assert (several.count, several.gpus, several.cpus) == (1, 2.0, 3)
    cpus = plan_workers("cpu", placement=StagePlacement(cpus_per_worker=4), nodes=GPUS)
    assert (cpus.count, cpus.threads, cpus.cpus) == (5, 4, 4)


def test_a_resource_that_no_node_has_is_named_unless_an_autoscaler_is_to_start_it() -> None:
    with pytest.raises(RecoError, match="resource 'tpu', which no node has"):
        plan_workers("cpu", placement=StagePlacement(reader_resources={"tpu": 1}), nodes=GPUS)
    with pytest.raises(RecoError, match="no GPU"):
        plan_workers("cuda", nodes=[{"CPU": 4.0}])
    awaited = StagePlacement(workers=3, gpus_per_worker=1, worker_resources={"tpu": 1})
    assert plan_workers("cuda", placement=awaited, nodes=[{"CPU": 0.0}]).count == 3
    assert plan_workers("cuda", 2, awaited, [{"CPU": 0.0}]).count == 2


def test_what_cannot_be_asked_for_is_refused_by_its_name() -> None:
    with pytest.raises(RecoError, match=r"placement\.embed\.gpus_per_worker"):
        load_settings(overrides=["placement.embed.gpus_per_worker=1.5"])
    with pytest.raises(RecoError, match=r"placement\.train: there is no such setting"):
        load_settings(overrides=["placement.train.workers=2"])
