"""Nodes, drivers and commits are killed; the rows are those of a run that nothing disturbed, byte for byte."""

import io
import os
import shutil
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
from stores import RESET, Server, s3_store

from reco_ray.config import load_settings
from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus.generations import embedding_files
from reco_ray.corpus.stage import embed_corpus
from reco_ray.files import artifacts, storage
from reco_ray.files.verify import verify

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
def s3() -> Iterator[Server]:
    with s3_store("bucket") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def cluster(s3) -> Iterator[Cluster]:
    """Two nodes of one logical CPU, for all runs: a killed driver leaves its workers to the cluster."""
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def undisturbed(cluster, corpus, settings, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    manifest = embed_corpus(str(corpus), str(out), settings).manifest
    assert manifest.counts == COUNTS
    return content(out)


def content(out: Path | str) -> dict[str, bytes]:
    """Every file that a reader of the artifact sees, except for times."""
    return {
        f"{folder}/{name}": storage.read_bytes(f"{out}/{folder}/{name}")
        for folder in ("listing", "embeddings", "rejected", "duplicates")
        for name in storage.list_names(f"{out}/{folder}")
        if not name.endswith(".tmp")
    }


@contextmanager
def running(
    cluster: Cluster, corpus: Path, out: Path | str, before: str = "", *words: str
) -> Iterator[subprocess.Popen]:
    """The command in a process of its own, which is killed at the end; `before` runs in it first."""
    command = [sys.executable, "-c", f"{before}\nfrom reco_ray.cli import main; main()", "embed", *words]
    command += ["--corpus", str(corpus), "--out", str(out), *(f"--set={setting}" for setting in SETTINGS)]
    with Path(f"{corpus}.log").open("ab") as log:
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
from reco_ray.files import artifacts, storage
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
    outcome = embed_corpus(str(corpus), str(out), settings)
    manifest, new = outcome.manifest, outcome.new
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
    manifest = embed_corpus(str(corpus), str(out), settings).manifest
    killer.join()
    assert any(name.startswith("ray::") for name in killed)
    assert manifest.counts == COUNTS
    assert content(out) == undisturbed


# --- in an object store, and what is new since --------------------------------------------------------------


@contextmanager
def holding(s3: Server, at: str, after: int, outcome: str | None) -> Iterator[threading.Event]:
    """The upload to `at`, after so many others, begins, and waits until the block ends: then it is lost or arrives."""
    begun, let_go, uploads = threading.Event(), threading.Event(), []

    def fault(method: str, path: str, before: int) -> str | None:
        if method != "PUT" or at not in path:
            return None
        uploads.append(path)
        if len(uploads) <= after:
            return None
        begun.set()
        let_go.wait(60)
        return outcome

    s3.fault = fault
    try:
        yield begun
    finally:
        let_go.set()
        wait_until(lambda: not s3.busy.total())
        s3.fault = lambda method, path, before: None


@pytest.mark.timeout(900)
def test_a_driver_killed_while_it_writes_to_a_store_and_while_it_follows(
    s3, cluster, corpus, settings, tmp_path
):
    """In the first part of a run and before its manifest, then the same in what came to the source since."""
    growing, out, local = tmp_path / "corpus", "s3://bucket/out", tmp_path / "out"
    growing.mkdir()
    tars = sorted(corpus.iterdir())
    for tar in tars[:3]:
        shutil.copy(tar, growing)

    def killed(at: str, after: int, outcome: str | None, *words: str) -> None:
        with holding(s3, at, after, outcome) as begun, running(cluster, growing, out, "", *words) as driver:
            wait_until(begun.is_set, driver)

    killed("/out/embeddings/", 2, None)
    assert not storage.exists(f"{out}/manifest.json")
    killed("/out/manifest.json", 0, RESET)
    assert not storage.exists(f"{out}/manifest.json")
    outcome = embed_corpus(str(growing), out, settings)
    first, new = outcome.manifest, outcome.new
    assert new
    embed_corpus(str(growing), str(local), settings)
    assert content(out) == content(local)

    for tar in tars[3:]:
        shutil.copy(tar, growing)
    for at, after, outcome in (("/out/embeddings/", 2, RESET), ("/out/manifest.json", 0, None)):
        before = [storage.read_bytes(file) for file in embedding_files(out, first.content)]
        killed(at, after, outcome, "--follow")
        assert [storage.read_bytes(file) for file in embedding_files(out, first.content)] == before
    embed_corpus(str(growing), out, settings, follow=True)
    manifest = embed_corpus(str(growing), str(local), settings, follow=True).manifest
    assert manifest.counts == COUNTS
    assert content(out) == content(local)
    stored = artifacts.read_manifest(out, EmbeddingsContent)
    assert (stored.counts, stored.content) == (manifest.counts, manifest.content)
    assert verify(out).differences == []
