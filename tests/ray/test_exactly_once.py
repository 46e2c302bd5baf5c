"""Nodes, drivers and commits are killed; the rows are those of a run that nothing disturbed, byte for byte."""

import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clusters import two_nodes
from images import write_photographs
from processes import descendants, kill_at_once, title
from ray.cluster_utils import Cluster

from reco_ray.checksums import verify
from reco_ray.config import load_settings
from reco_ray.corpus.stage import embed_corpus

SETTINGS = ["embed.shard_size=2", "embed.batch_size=2"]
COUNTS = {"images": 52, "embedded": 40, "rejected": 2, "duplicates": 10}

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc"),
]


@pytest.fixture(scope="module")
def settings():
    return load_settings("mini", overrides=SETTINGS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Five tars, read as streams, whose parts are committed one by one; copies lie in different parts and tars."""
    folder = tmp_path_factory.mktemp("corpus")
    photographs = [file.read_bytes() for file in write_photographs(folder / "photographs", 40)]
    order = [*range(40), *range(0, 40, 4)]
    data = [photographs[number] for number in order] + [b"", b"no image"]
    (folder / "tars").mkdir()
    for number in range(5):
        with tarfile.open(folder / "tars" / f"{number}.tar", "w") as tar:
            for place in range(number, len(data), 5):
                entry = tarfile.TarInfo(f"{place:03d}.jpg")
                entry.size = len(data[place])
                tar.addfile(entry, io.BytesIO(data[place]))
    return folder / "tars"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one logical CPU, for all runs: a killed driver leaves its workers to the cluster."""
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def undisturbed(cluster, corpus, settings, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    manifest, _ = embed_corpus(str(corpus), str(out), settings)
    assert manifest.counts == COUNTS
    return content(out)


def content(out: Path) -> dict[str, bytes]:
    """Every file that a reader of the artifact sees, except for times."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for folder in ("listing", "embeddings", "rejected", "duplicates")
        for file in sorted((out / folder).glob("*"))
        if not file.name.endswith(".tmp")
    }


@contextmanager
def running(cluster: Cluster, corpus: Path, out: Path, before: str = "") -> Iterator[subprocess.Popen]:
    """The command in a process of its own, which is killed at the end; `before` runs in it first."""
    command = [sys.executable, "-c", f"{before}\nfrom reco_ray.cli import main; main()", "embed"]
    command += ["--corpus", str(corpus), "--out", str(out), *(f"--set={setting}" for setting in SETTINGS)]
    with Path(f"{out}.log").open("ab") as log:
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield driver
    finally:
        kill_at_once(driver.pid)
        driver.wait()


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        assert driver is None or driver.poll() is None, "the run ended by itself"
        time.sleep(0.003)


def parts(out: Path) -> int:
    return len(list(out.glob("embeddings/*.parquet")))


# Stops the driver in the middle of the closing step, to be killed there: when it has written the first table of
# copies, when it has written the first table without them, and when it is about to write the manifest.
_STOPPING = """
import os, signal
from reco_ray import storage
write = storage.write_bytes
def stopping(uri, data):
    if {at!r} in uri and not {after}:
        os.kill(os.getpid(), signal.SIGSTOP)
    write(uri, data)
    if {at!r} in uri and {after}:
        os.kill(os.getpid(), signal.SIGSTOP)
storage.write_bytes = stopping
"""


@pytest.mark.timeout(600)
def test_a_driver_killed_again_and_again(cluster, corpus, settings, undisturbed, tmp_path):
    """Twice while it embeds, the second time as soon as it has gone on; then at each step of the commit."""
    out = tmp_path / "out"
    for _ in range(2):
        before = parts(out)
        with running(cluster, corpus, out) as driver:
            wait_until(lambda before=before: parts(out) > before, driver)
    assert 2 <= parts(out) < len([name for name in undisturbed if name.startswith("embeddings/")])
    for at, after in (("duplicates/across-", True), ("/embeddings/", True), ("manifest.json", False)):
        with running(cluster, corpus, out, _STOPPING.format(at=at, after=after)) as driver:
            wait_until(lambda driver=driver: _is_stopped(driver.pid), driver)
        assert not (out / "manifest.json").exists()
    manifest, new = embed_corpus(str(corpus), str(out), settings)
    assert new
    assert manifest.counts == COUNTS
    assert content(out) == undisturbed
    assert verify(str(out)).differences == []


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.timeout(600)
def test_a_node_killed_in_the_middle(cluster, corpus, settings, undisturbed, tmp_path):
    """A node of three goes with its workers, its loaders and the blocks in its store."""
    out = tmp_path / "out"
    node = cluster.add_node(num_cpus=1)
    killed = []

    def kill_node() -> None:
        wait_until(lambda: parts(out) >= 3)
        raylet = node.all_processes["raylet"][0].process.pid
        killed.extend(title(pid) for pid in descendants(raylet))
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill_node)
    killer.start()
    manifest, _ = embed_corpus(str(corpus), str(out), settings)
    killer.join()
    assert any(name.startswith("ray::") for name in killed)
    assert manifest.counts == COUNTS
    assert content(out) == undisturbed
