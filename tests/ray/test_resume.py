"""Killed runs go on where they stopped, killed workers are replaced: nothing is lost or doubled."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from artifacts import embeddings, files, rows
from images import write_photographs
from processes import descendants, kill_at_once, title

from reco_ray.config import Settings, load_settings
from reco_ray.corpus.stage import embed_corpus
from reco_ray.files.verify import verify

SETTINGS = ["embed.shard_size=1", "embed.batch_size=1"]
COUNTS = {"images": 42, "embedded": 40, "rejected": 1, "duplicates": 1}

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.cpus(1),
    pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc"),
]


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings("mini", overrides=SETTINGS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    written = write_photographs(folder, 40)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "zz-copy.jpg").write_bytes(written[7].read_bytes())
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, settings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    manifest = embed_corpus(str(corpus), str(out), settings).manifest
    assert manifest.counts == COUNTS
    return out


def assert_equal(found: Path, expected: Path) -> None:
    """The same rows, and the same embeddings to the last digits of half precision."""
    for folder in ("rejected", "duplicates"):
        assert rows(found, folder) == rows(expected, folder)
    keys = ("image_id", "uri", "width", "height")
    tables = [[[row[key] for key in keys] for row in rows(out, "embeddings")] for out in (found, expected)]
    assert tables[0] == tables[1]
    first, second = embeddings(found), embeddings(expected)
    for image_id, vector in first.items():
        np.testing.assert_allclose(vector, second[image_id], atol=2e-3)


@contextmanager
def running(corpus: Path, out: Path, log: Path) -> Iterator[subprocess.Popen]:
    """The same run in a process of its own, with a Ray of its own; none of it outlives the block."""
    command = [sys.executable, "-c", "from reco_ray.cli import main; main()", "embed"]
    command += ["--corpus", str(corpus), "--out", str(out), *(f"--set={setting}" for setting in SETTINGS)]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    with log.open("wb") as file:
        driver = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        yield driver
    finally:
        if driver.poll() is None:
            kill_at_once(driver.pid)
            driver.wait()


def wait_for_shards(out: Path, count: int, alive: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 150
    while len(list(out.glob("embeddings/*.parquet"))) < count:
        assert time.monotonic() < deadline, "no shard was committed"
        assert alive is None or alive.poll() is None, "the run ended by itself"
        time.sleep(0.005)


def test_a_killed_run_goes_on_where_it_stopped(corpus, settings, undisturbed, tmp_path):
    out = tmp_path / "out"
    with running(corpus, out, tmp_path / "log") as driver:
        wait_for_shards(out, 1, driver)
        kill_at_once(driver.pid)

    committed = files(out)
    shards = [name for name in committed if name.startswith("embeddings/") and name.endswith(".parquet")]
    assert "manifest.json" not in committed
    assert 0 < len(shards) < COUNTS["images"]
    # What a kill in mid-write leaves behind is no shard.
    (out / "embeddings" / "00000041.parquet.0a1b2c3d.tmp").write_bytes(b"half a table")

    outcome = embed_corpus(str(corpus), str(out), settings)
    manifest, new = outcome.manifest, outcome.new
    assert new
    assert manifest.counts == COUNTS
    assert_equal(out, undisturbed)
    after = files(out)
    assert {name: after[name] for name in shards} == {name: committed[name] for name in shards}
    assert verify(str(out)).differences == []


def test_an_interrupted_run_says_that_it_goes_on(corpus, tmp_path):
    """Ctrl-C reaches everything the terminal started."""
    out = tmp_path / "out"
    with running(corpus, out, tmp_path / "log") as driver:
        wait_for_shards(out, 1, driver)
        os.killpg(driver.pid, signal.SIGINT)
        assert driver.wait(timeout=100) == 130
    message = "error: interrupted: the same command goes on where it stopped\n"
    assert (tmp_path / "log").read_text() == message
    assert not (out / "manifest.json").exists()


def test_a_run_killed_before_its_last_line_only_commits(corpus, settings, undisturbed):
    before = files(undisturbed)
    (undisturbed / "manifest.json").unlink()
    outcome = embed_corpus(str(corpus), str(undisturbed), settings)
    manifest, new = outcome.manifest, outcome.new
    assert new
    assert manifest.counts == COUNTS
    after = files(undisturbed)
    assert after.keys() == before.keys()
    written = {"manifest.json", "summary.json", "checksums.parquet"}  # which has the summary's
    assert {n: f for n, f in after.items() if n not in written} == {
        n: f for n, f in before.items() if n not in written
    }


def test_a_killed_worker_loses_and_doubles_nothing(corpus, settings, undisturbed, tmp_path):
    out = tmp_path / "out"
    killed: list[str] = []

    def kill_one() -> None:
        wait_for_shards(out, 2)
        workers = [pid for pid in descendants(os.getpid()) if title(pid).startswith("ray::MapWorker")]
        killed.append(title(workers[0]))
        os.kill(workers[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    manifest = embed_corpus(str(corpus), str(out), settings).manifest
    killer.join()
    assert len(killed) == 1
    assert manifest.counts == COUNTS
    assert_equal(out, undisturbed)
