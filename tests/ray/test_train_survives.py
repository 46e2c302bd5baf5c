"""Training whose worker, node or driver is killed goes on from its last checkpoint and ends with the same weights."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from clusters import local_ray
from processes import descendants, kill_at_once, title
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file
from training_data import write_pseudo_labels

from reco_ray.config import load_settings
from reco_ray.files import storage
from reco_ray.training.stage import train_segmenters

STEPS, EVERY = 8, 4
SETTINGS = [
    "train.image_size=64", "train.crop=64", "train.batch_size=2", f"train.checkpoint_every={EVERY}",
    f"train.steps={STEPS}", "models.precision=fp32",
]  # fmt: skip

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc"),
]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pseudo_labels(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def undisturbed(labels: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it should be."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with local_ray(1):
        train(labels, out)
    return out


def train(labels: str, out: Path) -> None:
    settings = load_settings("mini", overrides=SETTINGS)
    (outcome,) = train_segmenters({"a": labels}, {"a": str(out)}, settings)
    assert outcome.error is None
    assert outcome.manifest is not None
    assert outcome.manifest.counts["steps"] == STEPS


def wait_for_checkpoint(out: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while not (out / "examples" / f"step-{step:06d}.jpg").exists():
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.02)
    # The picture is written before the checkpoint: wait for that as well.
    while not any(out.glob("checkpoints/checkpoint_manager_snapshot.json")):
        assert time.monotonic() < deadline, "no checkpoint was committed"
        time.sleep(0.02)


def assert_equal(found: Path, expected: Path) -> None:
    """The same weights to the last bit, and the same curve: so every step saw the crops it would have seen."""
    curves = [storage.read_table(str(out / "curve.parquet")).to_pylist() for out in (found, expected)]
    assert [entry["step"] for entry in curves[0]] == [EVERY, STEPS]
    assert curves[0] == curves[1]
    weights = [load_file(out / "weights.safetensors") for out in (found, expected)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        np.testing.assert_array_equal(tensor, weights[1][name], err_msg=name)


def train_workers() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if "RayTrainWorker" in title(pid)]


def test_a_killed_worker_then_a_killed_node_change_nothing(
    labels: str, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # The head has no CPU, so the run is on one of the two nodes beside it.
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

        def disturb() -> None:
            wait_for_checkpoint(out, EVERY)
            (worker,) = train_workers()
            os.kill(worker, signal.SIGKILL)
            while Path(f"/proc/{worker}").exists():
                time.sleep(0.02)
            killed.append("worker")
            cluster.remove_node(node_of_the_worker(nodes), allow_graceful=False)
            killed.append("node")

        killer = threading.Thread(target=disturb)
        killer.start()
        try:
            train(labels, out)
            killer.join(timeout=10)
        finally:
            ray.shutdown()
            cluster.shutdown()
    assert killed == ["worker", "node"]
    assert_equal(out, undisturbed)


def node_of_the_worker(nodes: list[Any]) -> Any:
    """The node where the run is; after a kill it may take a while to be anywhere."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for node in nodes:
            if set(descendants(raylet(node))) & set(train_workers()):
                return node
    raise AssertionError("no worker came back")


def raylet(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    return info.process.pid


def test_a_killed_driver_goes_on_with_the_same_command(
    labels: str, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from reco_ray.cli import main; main()", "train", "--labels", labels]
    command += ["--out", str(out), *(f"--set={setting}" for setting in SETTINGS)]
    (name,) = [part for part in Path(labels).parts if part.startswith("labels") and part != "labels"]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            wait_for_checkpoint(out / name / "segmenter", EVERY)
        finally:
            kill_at_once(driver.pid)
            driver.wait()
    assert not (out / name / "segmenter" / "manifest.json").exists()
    subprocess.run(command, env=environment, check=True, timeout=400)
    # This run has all cores of the machine, whose sums differ in the last bits; other crops would differ in the first.
    made = out / name / "segmenter"
    curves = [storage.read_table(str(o / "curve.parquet")).to_pylist() for o in (made, undisturbed)]
    assert [entry["step"] for entry in curves[0]] == [entry["step"] for entry in curves[1]]
    losses = [[entry["loss"] for entry in curve] for curve in curves]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)
