"""What a stage's workers ask of a cluster."""

import pytest

from reco_ray.config import StagePlacement, load_settings
from reco_ray.distributed.workers import READER_CPUS, plan_runs, plan_workers
from reco_ray.errors import NoRoomError, RecoError

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
    two = [{"CPU": 8.0, "GPU": 2.0}]
    several = plan_workers(placement=StagePlacement(gpus_per_worker=2, cpus_per_worker=3), nodes=two)
    assert (several.count, several.gpus, several.cpus) == (1, 2.0, 3)
    cpus = plan_workers("cpu", placement=StagePlacement(cpus_per_worker=4), nodes=GPUS)
    assert (cpus.count, cpus.threads, cpus.cpus) == (4, 4, 4)  # five would leave none for readers


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
    with pytest.raises(RecoError, match=r"placement\.index: there is no such setting"):
        load_settings(overrides=["placement.index.workers=2"])


@pytest.mark.parametrize("share", [None, 0.125, 0.25, 0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("cpus_per_worker", [None, 0, 0.5, 1, 4])
def test_gpu_workers_leave_cpus_for_readers_or_the_pool_is_refused(
    share: float | None, cpus_per_worker: float | None
) -> None:
    placement = StagePlacement(gpus_per_worker=share, cpus_per_worker=cpus_per_worker)
    for gpus in (1, 2, 3, 4, 8):
        for cpus in (1, 2, 4, 8, 16):
            nodes = [{"CPU": float(cpus), "GPU": float(gpus)}]
            if (share or 1.0) > gpus or (cpus_per_worker or 0.0) + READER_CPUS > cpus:
                with pytest.raises(NoRoomError, match="no node has room for a worker"):
                    plan_workers("cuda", placement=placement, nodes=nodes)
                continue
            workers = plan_workers("cuda", placement=placement, nodes=nodes)
            assert workers.count >= 1
            assert workers.count * workers.cpus <= cpus - READER_CPUS + 1e-9
            assert workers.count * workers.gpus <= gpus
            if cpus_per_worker is None:  # then every GPU is used
                assert workers.count == (
                    int(gpus * (1 / workers.gpus)) if workers.gpus <= 1 else gpus // workers.gpus
                )


def test_a_worker_of_two_gpus_needs_a_node_with_two() -> None:
    with pytest.raises(NoRoomError, match=r"2 GPUs.*lower gpus_per_worker"):
        plan_workers(placement=StagePlacement(gpus_per_worker=2), nodes=GPUS)
    with pytest.raises(NoRoomError, match=r"1 CPUs and 1 GPUs"):
        plan_workers(nodes=[{"GPU": 1.0}, {"CPU": 4.0}])


@pytest.mark.parametrize("nodes", [[{"CPU": 1.0}], [{"CPU": 4.0}], [{"CPU": 16.0}], [{"CPU": 2.0}] * 3])
@pytest.mark.parametrize("cpus_per_worker", [None, 0.5, 1, 2, 4])
def test_cpu_workers_leave_cpus_for_readers_too(
    nodes: list[dict[str, float]], cpus_per_worker: float | None
) -> None:
    total = sum(node["CPU"] for node in nodes)
    placement = StagePlacement(cpus_per_worker=cpus_per_worker)
    needed = cpus_per_worker or 0.0
    if all(node["CPU"] < needed for node in nodes) or total < needed + READER_CPUS:
        with pytest.raises(NoRoomError, match="lower cpus_per_worker"):
            plan_workers("cpu", placement=placement, nodes=nodes)
        return
    workers = plan_workers("cpu", placement=placement, nodes=nodes)
    assert workers.count * workers.cpus <= total - READER_CPUS + 1e-9


def test_training_on_gpus_leaves_cpus_for_the_feeders() -> None:
    settings = load_settings()
    for gpus in range(1, 9):
        for cpus in (1, 2, 4, 8, 16, 64):
            nodes = [{"CPU": float(cpus), "GPU": float(gpus)}]
            if cpus / gpus < READER_CPUS:
                with pytest.raises(NoRoomError, match="add CPUs"):
                    plan_runs(3, settings, nodes)
                continue
            plan = plan_runs(3, settings, nodes)
            assert plan.at_once == gpus
            assert plan.feeders >= 1
            assert gpus * (plan.workers.cpus + plan.feeders * READER_CPUS) <= cpus + 1e-6
    plan = plan_runs(1, settings, [{"CPU": 64.0, "GPU": 8.0}])
    assert (plan.workers.cpus, plan.feeders) == (1.0, 7)
    many = load_settings(overrides=["train.feeders=40"])
    with pytest.raises(NoRoomError, match=r"each of 40 feeders"):
        plan_runs(1, many, [{"CPU": 8.0, "GPU": 1.0}])
    with pytest.raises(NoRoomError, match=r"train\.workers=4"):
        plan_runs(1, load_settings(overrides=["train.workers=4"]), [{"CPU": 8.0, "GPU": 2.0}])


def test_training_asks_an_autoscaler_for_gpus() -> None:
    awaited = ["placement.train.workers=4", "placement.train.gpus_per_worker=1"]
    plan = plan_runs(8, load_settings(overrides=[*awaited, "train.workers=2"]), [{"CPU": 2.0}])
    assert (plan.workers.count, plan.workers.gpus, plan.at_once) == (2, 1.0, 2)
    resources = load_settings(overrides=["placement.train.worker_resources={l4: 1}"])
    assert plan_runs(1, resources, [{"CPU": 2.0, "l4": 1.0}]).workers.resources == {"l4": 1}
