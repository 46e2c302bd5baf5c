"""Ray clusters: one that tests share, one inside the test process, and one of its own that takes jobs."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import ray
from processes import descendants, title
from ray.cluster_utils import Cluster

import reco_ray.distributed.session  # noqa: F401  # sets how long Ray keeps processes that have imported torch

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


_shared_cpus = 0  # of the cluster that tests share; 0 = there is none


def share_ray(cpus: int) -> None:
    """Connects this process to the cluster of tests marked `cpus`; one of another size is stopped."""
    global _shared_cpus
    if _shared_cpus != cpus or not ray.is_initialized():
        stop_shared_ray()
        _start(cpus)
        _shared_cpus = cpus


def stop_shared_ray() -> None:
    """Before a test starts a cluster of its own."""
    global _shared_cpus
    ray.shutdown()
    _shared_cpus = 0


def _start(cpus: int, gpus: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )


@contextmanager
def local_ray(cpus: int, gpus: int = 0) -> Iterator[None]:
    """A cluster of its own with `cpus` logical CPUs and `gpus` pretended GPUs, whatever the machine has."""
    stop_shared_ray()
    _start(cpus, gpus)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """A cluster of two nodes with one logical CPU each, both on this machine."""
    stop_shared_ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


class Rehearsal(NamedTuple):
    """The cluster: its process, where Ray and its dashboard listen, and an environment that holds the token."""

    pid: int
    address: str
    dashboard: str
    environment: dict[str, str]


@contextmanager
def rehearsal(*nodes: str, python: str = sys.executable, **variables: str) -> Iterator[Rehearsal]:
    """`cluster/local.py` with the nodes and environment variables; afterwards nothing of it is left."""
    inherited = {n: v for n, v in os.environ.items() if n not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment = {
        **inherited,
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        **variables,
    }
    process = subprocess.Popen(
        [python, "cluster/local.py", *(word for node in nodes for word in ("--node", node))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    printed: dict[str, str] = {}
    try:
        while "ready" not in printed and (line := process.stdout.readline()):
            name, value = line.split()[:2]
            printed[name] = value
        assert printed.get("ready") == str(len(nodes))
        yield Rehearsal(process.pid, printed["address"], printed["dashboard"], environment)
    finally:
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not [title(pid) for pid in below if "raylet" in title(pid) or "gcs_server" in title(pid)]
