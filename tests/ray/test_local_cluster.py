"""`cluster/local.py`: several raylets with claimed GPUs, and stages that land where their placement says."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from images import write_photographs
from processes import descendants, title

from reco_ray.cluster import plan_workers, session
from reco_ray.config import StagePlacement
from reco_ray.errors import RecoError
from reco_ray.shards import cut, run_shards
from reco_ray.storage import read_manifest

ROOT = Path(__file__).parents[2]
NODES = ["CPU=2,GPU=1,model=1", "CPU=1,decode=4", "CPU=2,GPU=1"]
SETTINGS = """
embed: {shard_size: 4, batch_size: 4}
placement:
  embed: {workers: 1, cpus_per_worker: 0.5, worker_resources: {model: 1}, reader_resources: {decode: 2}}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of three nodes; after the tests the process stops them, and nothing of them is left."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "cluster/local.py", "--no-dashboard"]
    process = subprocess.Popen(
        [*command, *(word for node in NODES for word in ("--node", node))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    printed: dict[str, str] = {}
    try:
        while "ready" not in printed and (line := process.stdout.readline()):
            name, value = line.split()[:2]
            printed[name] = value
        assert printed.get("ready") == "3"
        yield printed["address"]
    finally:
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not [title(pid) for pid in below if "raylet" in title(pid) or "gcs_server" in title(pid)]


@pytest.fixture
def joined(cluster: str) -> Iterator[None]:
    with session(cluster):
        yield


class Whereabouts:
    """A worker that says on which node the shard was loaded and computed, and on which GPU."""

    def __init__(self, *, threads: int, device: str) -> None:
        self._place = {"threads": threads, "device": device, "gpus": ray.get_gpu_ids()}

    def __call__(self, name: str, rows: pa.Table) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        return {**self._place, "worker": node, "reader": rows["reader"][0].as_py()}


def loaded(rows: pa.Table) -> pa.Table:
    node = ray.get_runtime_context().get_node_id()
    return rows.append_column("reader", pa.array([node] * rows.num_rows))


def node_with(resource: str) -> str:
    return next(node["NodeID"] for node in ray.nodes() if resource in node["Resources"])


def test_nodes_claim_what_was_asked_for_on_loopback(joined) -> None:
    nodes = ray.nodes()
    assert {node["NodeManagerAddress"] for node in nodes} == {"127.0.0.1"}
    assert ray.cluster_resources().items() >= {"CPU": 5.0, "GPU": 2.0, "model": 1.0, "decode": 4.0}.items()


def test_workers_share_gpus_and_land_where_their_resources_are(joined) -> None:
    placement = StagePlacement(
        gpus_per_worker=0.5,
        cpus_per_worker=0.5,
        worker_resources={"model": 0.5},
        reader_resources={"decode": 1},
    )
    workers = plan_workers("auto", placement=placement)
    assert (workers.count, workers.gpus, workers.device) == (2, 0.5, "cuda")  # 4 fit the GPUs, 2 the resource
    shards = cut(pa.table({"row": list(range(8))}), 1)
    found = list(run_shards(shards, loaded, Whereabouts, {}, workers))
    assert len(found) == 8
    assert {one["worker"] for one in found} == {node_with("model")}
    assert {one["reader"] for one in found} == {node_with("decode")}
    assert {tuple(one["gpus"]) for one in found} == {(0,)}


def test_the_plan_without_placement_is_a_worker_a_gpu(joined) -> None:
    workers = plan_workers()
    assert (workers.count, workers.cpus, workers.gpus, workers.threads) == (2, 1.0, 1.0, 1)
    assert workers.resources == workers.reader_resources == {}
    workers = plan_workers("cpu")
    assert (workers.count, workers.cpus, workers.gpus, workers.threads) == (5, 0.75, 0.0, 1)


def test_a_resource_that_no_node_has_is_named_unless_it_is_awaited(joined) -> None:
    with pytest.raises(RecoError, match="resource 'tpu', which no node has"):
        plan_workers("cpu", placement=StagePlacement(reader_resources={"tpu": 1}))
    awaited = StagePlacement(workers=3, gpus_per_worker=1, worker_resources={"tpu": 1})
    assert plan_workers("cuda", placement=awaited).count == 3


def test_embed_runs_there(cluster, tmp_path) -> None:
    write_photographs(tmp_path / "corpus", 12)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    words = ["embed", "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "embeddings")]
    words += ["--settings", str(tmp_path / "settings.yaml"), "--device", "cpu", "--address", cluster]
    done = subprocess.run(
        [sys.executable, "jobs/embed.py", *words[1:]],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(str(tmp_path / "embeddings"), "embeddings")
    assert manifest.counts["embedded"] == 12
    assert "placement" not in manifest.model_dump_json()


@pytest.mark.parametrize("node", ["CPU", "CPU=many", "CPU=1,,GPU=1", "CPU=-1"])
def test_a_node_that_cannot_be_is_refused(node: str) -> None:
    done = subprocess.run(
        [sys.executable, "cluster/local.py", "--node", node], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "expected resources such as" in done.stderr
