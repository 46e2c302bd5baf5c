"""The index stage on Ray: shards side by side, measured recall, kills of the driver and of a node."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
from artifacts import files
from processes import kill_at_once
from ray.cluster_utils import Cluster
from vectors import MODEL, clustered, follow_embeddings, write_embeddings

import reco_ray
from reco_ray.cli import main
from reco_ray.config import IndexSettings
from reco_ray.corpus.duplicates import find_duplicates
from reco_ray.corpus.index import CorpusIndex, build_index
from reco_ray.errors import RecoError
from reco_ray.files.storage import read_table

ROWS, SHARDS = 6000, 6
SETTINGS = IndexSettings(factory="IVF32,SQ8", shard_size=ROWS // SHARDS)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(ROWS)


@pytest.fixture(scope="module")
def embeddings(vectors, tmp_path_factory) -> str:
    return write_embeddings(tmp_path_factory.mktemp("embeddings"), vectors, part_size=250)


def content(out: Path) -> dict[str, bytes]:
    """All files except those that say when they were made."""
    return {name: data for name, (data, _) in files(out).items() if "/" in name}


@pytest.mark.cpus(2)
class TestOnOneCluster:
    @pytest.fixture(scope="class")
    def built(self, embeddings, tmp_path_factory) -> Path:
        out = tmp_path_factory.mktemp("built") / "index"
        built = build_index(embeddings, str(out), SETTINGS)
        assert built.new
        assert built.manifest.counts == {"images": ROWS}
        return out

    def test_recall_is_measured_and_written_down(self, built, vectors):
        index = CorpusIndex(str(built), MODEL)
        assert all(shard.bytes < 1000 * 40 + 2000 for shard in index.manifest.content.shards), (
            "centroids too?"
        )
        told = index.manifest.content.recall
        assert told.k == 50
        assert min(told.images, told.between) > 0.9
        queries = clustered(200, seed=9)
        exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :50]
        found = index.search(queries, 50)[1]
        mine = np.mean([len(set(a) & set(b)) / 50 for a, b in zip(found, exact, strict=True)])
        assert mine == pytest.approx(told.images, abs=0.05)

    def test_similarities_fall_and_belong_to_their_rows(self, built, vectors):
        queries = clustered(5, seed=4)
        similarities, found = CorpusIndex(str(built), MODEL).search(queries, 100)
        assert (np.diff(similarities, axis=1) <= 0).all()
        for query, row, told in zip(queries, found, similarities, strict=True):
            assert len(set(row)) == 100
            np.testing.assert_allclose(vectors[row] @ query, told, atol=0.02)

    def test_shards_of_one_trained_index_answer_as_a_single_one(self, embeddings, built, tmp_path):
        build_index(embeddings, str(tmp_path / "one"), SETTINGS.model_copy(update={"shard_size": ROWS}))
        queries = clustered(20, seed=7)
        one, many = CorpusIndex(str(tmp_path / "one"), MODEL), CorpusIndex(str(built), MODEL)
        assert len(one.manifest.content.shards) == 1
        assert len(many.manifest.content.shards) == SHARDS
        assert one.manifest.content.nprobe == many.manifest.content.nprobe
        assert one.manifest.content.recall == many.manifest.content.recall
        np.testing.assert_allclose(many.search(queries, 60)[0], one.search(queries, 60)[0], rtol=1e-5)

    def test_a_prefix_gives_k_results_where_there_are_as_many(self, built, vectors):
        index = CorpusIndex(str(built), MODEL)
        rows = np.arange(0, ROWS, 3)
        query = clustered(1, seed=8)
        found = index.search(query, len(rows), prefix="/b/")[1]
        assert set(found[0]) == set(rows)
        few = index.search(query, 50, prefix="/b/")[1][0]
        best = rows[np.argsort(-(vectors[rows] @ query[0]))[:50]]
        assert len(set(few) & set(best)) >= 45
        assert index.search(query, ROWS)[1].min() >= 0  # more than the lists that nprobe names hold

    @pytest.mark.parametrize(
        ("codes", "floor", "least"), [("SQ8", {}, 0.8), ("RaBitQ2", {"min_recall": 0.5}, 0.5)]
    )
    def test_a_rotation_before_the_lists_is_applied(self, embeddings, vectors, tmp_path, codes, floor, least):
        """With RaBitQ2 it is the choice for more than 100 million images; of 32 dimensions two bits tell little."""
        settings = IndexSettings(factory=f"RR32,IVF16,{codes}", shard_size=4000, **floor)
        build_index(embeddings, str(tmp_path / "o"), settings)
        query = clustered(10, seed=3)
        found = CorpusIndex(str(tmp_path / "o"), MODEL).search(query, 10)[1]
        exact = np.argsort(-(query @ vectors.T), axis=1)[:, :10]
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) > least

    def test_flat_shards_are_exact_too(self, embeddings, vectors, tmp_path):
        build_index(embeddings, str(tmp_path / "f"), IndexSettings(factory="Flat", shard_size=2500))
        query = clustered(10, seed=3)
        index = CorpusIndex(str(tmp_path / "f"), MODEL)
        assert len(index.manifest.content.shards) == 3
        exact = np.argsort(-(query @ vectors.T), axis=1)[:, :10]
        assert (np.sort(index.search(query, 10)[1]) == np.sort(exact)).all()

    def test_recall_below_the_floor_is_refused_until_the_floor_is_lowered(self, embeddings, tmp_path):
        poor = IndexSettings(factory="IVF32,SQ8", nprobe=1, min_recall=0.99)
        with pytest.raises(
            RecoError, match=r"recall@50 is 0\.\d+ with IVF32,SQ8, but index.min_recall is 0.99"
        ):
            build_index(embeddings, str(tmp_path / "out"), poor)
        with pytest.raises(RecoError, match="unfinished"):
            CorpusIndex(str(tmp_path / "out"), MODEL)
        before = content(tmp_path / "out")
        build_index(embeddings, str(tmp_path / "out"), poor.model_copy(update={"min_recall": 0.1}))
        assert content(tmp_path / "out") == before

    def test_what_was_embedded_since_is_added_and_recall_measured_again(self, vectors, tmp_path):
        embeddings = write_embeddings(tmp_path / "embeddings", vectors[:4000], part_size=250)
        build_index(embeddings, str(tmp_path / "index"), SETTINGS)
        before = content(tmp_path / "index")
        follow_embeddings(embeddings, vectors, part_size=250)
        made = reco_ray.index(
            embeddings=embeddings, out=tmp_path / "index", follow=True, set=["index.shard_size=1000"]
        )
        assert made.manifest.counts == {"images": ROWS}
        assert before.items() <= content(tmp_path / "index").items()
        index = CorpusIndex(str(tmp_path / "index"), MODEL)
        assert [shard.start for shard in index.manifest.content.shards] == [0, 1000, 2000, 3000, 4000, 5000]
        assert index.manifest.content.recall.images > 0.9
        queries = clustered(50, seed=9)
        exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :50]
        found = index.search(queries, 50)[1]
        assert np.mean([len(set(a) & set(b)) / 50 for a, b in zip(found, exact, strict=True)]) > 0.9
        assert (found >= 4000).any()

    def test_near_duplicates_are_found_with_lists_as_by_comparing_all(self, built, vectors, tmp_path):
        made = find_duplicates(str(built), 0.9, str(tmp_path / "out"))
        near = {tuple(pair) for pair in np.argwhere(np.triu(vectors @ vectors.T >= 0.9, 1)).tolist()}
        pairs = read_table(str(tmp_path / "out" / "pairs"))
        found = {
            (min(pair), max(pair))
            for pair in zip(pairs["first"].to_pylist(), pairs["second"].to_pylist(), strict=True)
        }
        assert len(near) > 100
        assert not found - near
        assert len(found) > 0.95 * len(near)
        assert made.manifest.counts["images"] == ROWS

    def test_what_a_kill_leaves_is_gone_on_with(self, embeddings, built, tmp_path):
        """A shard without its record, half-written names, a trained index that was lost: the same index in the end."""
        out = tmp_path / "out"
        build_index(embeddings, str(out), SETTINGS)
        expected = content(built)
        assert content(out) == expected
        (out / "manifest.json").unlink()
        (out / "shards/000002.json").unlink()
        (out / "shards/000003.json").write_text('{"name": "000003", "fing')
        (out / "shards/000004.faiss").unlink()
        (out / "shards/000004.json").unlink()
        kept = {name: when for name, (_, when) in files(out).items() if "000001" in name or "trained" in name}
        build_index(embeddings, str(out), SETTINGS)
        assert content(out) == expected
        assert {name: files(out)[name][1] for name in kept} == kept
        (out / "manifest.json").unlink()
        (out / "trained/fingerprint").unlink()
        build_index(embeddings, str(out), SETTINGS)
        assert content(out) == expected

    def test_other_settings_are_refused(self, embeddings, built):
        with pytest.raises(RecoError, match=r"made with index\.factory = IVF32,SQ8, now IVF16,SQ8"):
            build_index(embeddings, str(built), IndexSettings(factory="IVF16,SQ8", shard_size=1000))

    def test_explain_says_what_would_be_built_and_builds_nothing(self, embeddings, tmp_path, capsys):
        main(["index", "--embeddings", embeddings, "--explain", "--set", "index.factory=IVF32,SQ8"])
        printed = capsys.readouterr().out
        assert "IVF32,SQ8" in printed
        assert "40 bytes" in printed
        assert "4.1 KB of centroids" in printed
        assert "6,000 images of 32 dimensions" in printed
        assert "recall@50" in printed


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
@pytest.mark.timeout(240)
def test_a_killed_driver_and_then_a_killed_node_change_nothing(vectors, tmp_path):
    """First the driver with its Ray is killed between two shards, then a node in the middle of the same command."""
    shards, out, log = 60, tmp_path / "out", tmp_path / "log"
    embeddings = write_embeddings(tmp_path / "embeddings", vectors, part_size=50)
    settings = SETTINGS.model_copy(update={"shard_size": ROWS // shards})
    command = f"index --embeddings {embeddings} --out {out} --set index.factory={settings.factory}"
    command += f" --set index.shard_size={settings.shard_size}"
    with log.open("wb") as file:
        driver = subprocess.Popen(
            [sys.executable, "-c", "from reco_ray.cli import main; main()", *command.split()],
            stdout=file,
            stderr=file,
            env={**os.environ, "RAY_ADDRESS": ""},
            start_new_session=True,
        )
    try:
        wait_for(lambda: records(out) or driver.poll() is not None)
    finally:
        kill_at_once(driver.pid)
        driver.wait()
    committed = records(out)
    assert 0 < len(committed) < shards - 10, log.read_text()
    assert not (out / "manifest.json").exists()
    before = files(out)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            doomed = cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            cluster.wait_for_nodes()
            at_kill: list[int] = []

            def kill() -> None:
                wait_for(lambda: len(records(out)) > len(committed) + 3)
                cluster.remove_node(doomed, allow_graceful=False)
                at_kill.append(len(records(out)))

            killer = threading.Thread(target=kill)
            killer.start()
            build_index(embeddings, str(out), settings)
            killer.join()
            assert at_kill[0] < shards, "the node died too late to matter"
            build_index(embeddings, str(tmp_path / "undisturbed"), settings)
        finally:
            ray.shutdown()
            cluster.shutdown()
    after = files(out)
    assert {name: after[name] for name in committed} == {name: before[name] for name in committed}
    assert content(out) == content(tmp_path / "undisturbed")
    index = CorpusIndex(str(out), MODEL)
    assert len(index.manifest.content.shards) == shards
    everything = index.search(clustered(1), ROWS)[1][0]
    assert sorted(everything) == list(range(ROWS))


def records(out: Path) -> list[str]:
    """The names of the committed shards' records."""
    return sorted(f"shards/{file.name}" for file in out.glob("shards/*.json"))


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)
