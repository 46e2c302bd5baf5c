"""The run book (docs/operations.md), provoked: what one sees, in which words, and that the same command goes on."""

import os
import random
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from clusters import BIN
from PIL import Image
from processes import descendants, kill_at_once, title, wait_until
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.util import get_node_ip_address
from servers import free_port

from reco_ray.contents import EmbeddingsContent
from reco_ray.files.artifacts import read_manifest

IMAGES = 600
CROPS = 224 * 224 * 3  # bytes of one image on its way to a worker

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="provokes what Linux does, and looks into /proc"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files, each different, whose crops are large: 90 MB in all."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(IMAGES):
        noise = Image.frombytes("RGB", (8, 8), random.Random(number).randbytes(192))
        noise.resize((40, 32)).save(folder / f"{number:05d}.jpg", quality=80)
    return folder


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray has its logs and what it spills: a short path, as sockets lie there too."""
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        yield Path(folder)


@contextmanager
def command(*words: object, **environment: object) -> Iterator[subprocess.Popen[str]]:
    """A `reco-ray` command that runs meanwhile; nothing of it is left afterwards."""
    process = subprocess.Popen(
        [str(BIN / "reco-ray"), *map(str, words)],
        env={n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
        | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_at_once(process.pid)
        process.wait()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Its status and lines."""
    printed, _ = process.communicate(timeout=240)
    return process.returncode, printed.splitlines()


def embed(corpus: Path, out: Path, shard_size: int = 300, *words: str) -> list[object]:
    return ["embed", "--corpus", corpus, "--out", out, "--set", f"embed.shard_size={shard_size}", *words]


def used_memory() -> float:
    memory = psutil.virtual_memory()
    return (memory.total - memory.available) / memory.total


# --- object store and disk ------------------------------------------------------------------------------------


def test_parts_larger_than_the_object_store_take_the_disk_and_a_full_one_ends_the_run(
    corpus: Path, tmp_path: Path, ray_folder: Path
) -> None:
    small = {"RAY_TMPDIR": ray_folder, "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": 80 * 2**20}
    out = tmp_path / "out"
    assert IMAGES * CROPS > 80 * 2**20
    with command(*embed(corpus, out, IMAGES), **small, RAY_local_fs_capacity_threshold=0.001) as process:
        status, lines = ended(process)
    assert status == 1
    assert len(lines) == 1
    assert "Ray's object store is full, and so is the disk" in lines[0]
    with command(*embed(corpus, out, IMAGES), **small) as process:
        assert ended(process)[0] == 0
    assert read_manifest(str(out), EmbeddingsContent).counts["embedded"] == IMAGES


# --- memory -----------------------------------------------------------------------------------------------------


def test_workers_that_ray_kills_for_memory_cost_a_pause(
    corpus: Path, tmp_path: Path, ray_folder: Path
) -> None:
    """Somebody else on the node takes more than the monitor allows, and gives it back."""
    out, limit = tmp_path / "out", used_memory() + 0.2
    settings = {"RAY_TMPDIR": ray_folder, "RAY_memory_usage_threshold": f"{limit:.3f}"}
    with command(*embed(corpus, out, 32), **settings) as process:
        wait_until(lambda: list((out / "embeddings").glob("*.parquet")), "nothing was committed")
        before = set(workers(process.pid))
        with memory_taken(limit + 0.02):
            wait_until(lambda: before - set(workers(process.pid)), "no worker was killed")
        status, lines = ended(process)
    assert (status, len(lines)) == (0, 1)
    assert read_manifest(str(out), EmbeddingsContent).counts["embedded"] == IMAGES


def test_workers_that_never_have_the_memory_end_the_run_with_a_line(
    corpus: Path, tmp_path: Path, ray_folder: Path
) -> None:
    settings = {
        "RAY_TMPDIR": ray_folder,
        "RAY_memory_usage_threshold": f"{used_memory() + 0.02:.3f}",
        "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": 30,
    }
    with command(*embed(corpus, tmp_path / "out"), **settings) as process:
        status, lines = ended(process)
    *warnings, line = lines
    assert status == 1
    assert "nothing was finished for 0.5 minutes" in line or "Ray killed workers" in line
    for warning in warnings:
        assert warning.startswith("Ray: "), warning
        assert "low on memory" in warning
    assert len(warnings) <= 5  # one a minute


def test_a_computation_that_gets_no_memory_ends_the_run_with_a_line(
    corpus: Path, tmp_path: Path, ray_folder: Path
) -> None:
    """The worker may not have more address space than when it idles: what a forward pass asks for is refused."""
    out = tmp_path / "out"
    words = embed(corpus, out, 100, "--set", "embed.batch_size=100")
    with command(*words, RAY_TMPDIR=ray_folder) as process:
        wait_until(lambda: list((out / "embeddings").glob("*.parquet")), "nothing was committed")
        for pid in workers(process.pid):
            size = psutil.Process(pid).memory_info().vms
            resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
        status, lines = ended(process)
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("error: out of memory on node ")
    with command(*words, RAY_TMPDIR=ray_folder) as process:
        assert ended(process)[0] == 0
    assert read_manifest(str(out), EmbeddingsContent).counts["embedded"] == IMAGES


def workers(root: int) -> list[int]:
    """The processes that compute."""
    return [pid for pid in descendants(root) if "MapBatches(_Worker)" in title(pid)]


@contextmanager
def memory_taken(share: float) -> Iterator[None]:
    """A process that takes memory until `share` of all is in use."""
    size = int((share - used_memory()) * psutil.virtual_memory().total)
    take = (
        f"b = bytearray({size}); b[::4096] = bytes(len(range(0, len(b), 4096))); import time; time.sleep(200)"
    )
    process = subprocess.Popen([sys.executable, "-c", take])
    try:
        yield
    finally:
        process.kill()
        process.wait()


# --- nodes that do not come -----------------------------------------------------------------------------------

# Ray's rehearsal of a cloud: the "instances" are raylets on this machine.
CLOUD: dict[str, Any] = {
    "cluster_name": "rehearsal",
    "max_workers": 1,
    "provider": {
        # By its module: as "fake_multinode" it wants an example file that the wheel does not have.
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "model": {
            "resources": {"CPU": 1, "model": 1, "object_store_memory": 10**8},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    },
    "head_node_type": "ray.head.default",
    "idle_timeout_minutes": 5,
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{
        name: []
        for name in (
            "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
            "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
            "rsync_filter",
        )
    },
    "file_mounts_sync_continuously": False,
    "upscaling_speed": 1.0,
}  # fmt: skip


@pytest.fixture
def autoscaled(tmp_path: Path, ray_folder: Path) -> Iterator[dict[str, str]]:
    """A head with an autoscaler that may start one node with a `model` -> the environment of who uses it."""
    port = free_port()
    address = f"{get_node_ip_address()}:{port}"
    cloud = CLOUD | {"provider": {**CLOUD["provider"], "gcs_address": address}}
    (tmp_path / "cloud.yaml").write_text(yaml.safe_dump(cloud))
    environment = {
        "RAY_TMPDIR": str(ray_folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_enable_autoscaler_v2": "1",
    }
    of_the_head = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    words = [
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=1",
        "--object-store-memory=100000000",
    ]
    words += ["--include-dashboard=false", "--dashboard-agent-listen-port=0"]
    head = subprocess.Popen(
        [str(BIN / "ray"), *words, f"--autoscaling-config={tmp_path}/cloud.yaml"],
        env=os.environ | environment | of_the_head,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: answers(port), "the head does not answer")
        yield environment | {"RAY_ADDRESS": address}
    finally:
        kill_at_once(head.pid)
        head.wait()


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_nodes_that_never_come_are_named_and_those_that_come_are_used(
    corpus: Path, tmp_path: Path, autoscaled: dict[str, str]
) -> None:
    def asking(resource: str, *words: str) -> list[object]:
        placed = [f"--set=placement.embed.worker_resources={{{resource}: 1}}", *words]
        return embed(corpus, tmp_path / resource, 300, *placed)

    workers = "--set=placement.embed.workers={}".format
    with command(*asking("tpu"), **autoscaled) as process:
        status, lines = ended(process)
    assert (status, len(lines)) == (1, 1)
    assert "placement asks for the resource 'tpu', which no node has" in lines[0]

    limit = {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "20"}
    with command(*asking("tpu", workers(1)), **autoscaled, **limit) as process:
        wait_until(lambda: "tpu" in status_of(autoscaled), "nothing is demanded")
        status, lines = ended(process)
    assert (status, len(lines)) == (1, 2)
    assert lines[0].startswith("waiting    no node has room for a worker (CPU 0.75, tpu 1): ")
    assert "nothing was finished for 0.333333 minutes: no node has room for the workers" in lines[1]

    with command(*asking("model", workers(2)), **autoscaled) as process:
        status, lines = ended(process)
    assert (status, len(lines)) == (0, 2)
    assert lines[0].startswith("waiting    no node has room for a worker (CPU 0.75, model 1): ")


def status_of(environment: dict[str, str]) -> str:
    words = [str(BIN / "ray"), "status", "--address", environment["RAY_ADDRESS"]]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True).stdout
