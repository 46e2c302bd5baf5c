"""Index: the choice by size, exactness of flat ones, what is refused. No Ray."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from vectors import MODEL, clustered, write_embeddings

from reco_ray import faiss_library
from reco_ray.config import IndexSettings
from reco_ray.contents import EmbeddingsContent, ExactRecall, Recall
from reco_ray.corpus.index import CorpusIndex, build_index, plan_index
from reco_ray.corpus.index.index_plan import choose_factory, make_plan
from reco_ray.corpus.index.recall import EXACT, ExactAnswers, Queries, measure, merge_answers, recall
from reco_ray.corpus.index.vectors import Part, list_parts, rows_at, sample_vectors
from reco_ray.errors import RecoError
from reco_ray.files import artifacts, storage

faiss = faiss_library.load_faiss()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(1500)


@pytest.fixture(scope="module")
def embeddings(vectors, tmp_path_factory) -> str:
    return write_embeddings(tmp_path_factory.mktemp("embeddings"), vectors)


@pytest.fixture(scope="module")
def index_uri(embeddings, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("index") / "flat")
    build_index(embeddings, out)
    return out


def prefixed(vectors: np.ndarray, letter: str) -> np.ndarray:
    rows = np.arange(len(vectors))
    return rows[(rows % 3 == 0) == (letter == "b")]


@pytest.mark.parametrize(
    ("images", "factory"),
    [
        (1, "Flat"),
        (250_000, "Flat"),
        (250_001, "IVF2048,SQ8"),
        (1_000_000, "IVF4096,SQ8"),
        (10_000_000, "IVF16384,SQ8"),
        (100_000_000, "IVF32768_HNSW32,SQ8"),
        (1_000_000_000, "RR512,IVF131072_HNSW32,RaBitQ2"),
    ],
)
def test_the_size_of_the_corpus_chooses(images, factory):
    assert choose_factory(images, 512) == factory


@pytest.mark.parametrize("dim", [320, 384, 512, 640, 768, 1024])
def test_faiss_makes_every_choice_of_every_usual_dimension(dim):
    for images in (1000, 10**6, 10**8, 10**9):
        parts = [Part(f"{n}", 10**6) for n in range(max(1, images // 10**6))]
        plan = make_plan(images, dim, IndexSettings(), parts)
        expected = {"Flat": 4 * dim, "SQ8": dim, "RaBitQ2": dim // 4 + 20}  # 20: lengths and corrections
        kind = next(kind for kind in expected if plan.factory.rpartition(",")[2].startswith(kind))
        assert plan.bytes_per_vector == expected[kind] + 8
        assert 4 * dim * plan.centroids <= plan.fixed_bytes <= (4 * dim + 256) * plan.centroids
        assert len(plan.shards) <= 64
        assert sum(shard.rows for shard in plan.shards) == 10**6 * len(parts)


@pytest.mark.parametrize(
    ("images", "settings", "recall"),
    [
        (1000, {}, 1.0),
        (10**6, {}, 0.95),
        (10**6, {"nprobe": 8}, None),
        (10**9, {}, 0.8),
        (10**9, {"target_recall": 0.7}, 0.7),
        (10**6, {"factory": "IVF4096,PQ64"}, None),
    ],
)
def test_recall_is_expected_only_where_it_was_measured(images, settings, recall):
    assert make_plan(images, 512, IndexSettings(**settings), [Part("a", images)]).expected_recall == recall


def test_shards_are_whole_files_and_join_without_a_gap():
    parts = [Part(str(n), rows) for n, rows in enumerate([30, 0, 50, 40, 200, 10, 0])]
    plan = make_plan(330, 8, IndexSettings(shard_size=100), parts)
    assert [[part.rows for part in shard.parts] for shard in plan.shards] == [[30, 0, 50, 40], [200], [10, 0]]
    assert [(shard.start, shard.rows) for shard in plan.shards] == [(0, 120), (120, 200), (320, 10)]


def test_a_flat_index_answers_exactly_as_faiss_does(vectors, index_uri):
    plain = faiss.IndexFlatIP(vectors.shape[1])
    plain.add(vectors)
    queries = clustered(7, seed=1)
    index = CorpusIndex(index_uri, MODEL)
    assert len(index) == 1500
    for k in (1, 50, 1500):
        expected, found = plain.search(queries, k), index.search(queries, k)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    assert index.manifest.content.factory == "Flat"
    assert index.manifest.content.recall == ExactRecall()


def test_rows_are_looked_up_in_any_order(index_uri):
    index = CorpusIndex(index_uri, MODEL)
    rows = [1499, 0, 700, 0, 299, 300]
    taken = index.images.take(np.array(rows))
    assert taken["image_id"].to_pylist() == [f"{row:064x}" for row in rows]
    assert index.images.take(np.array([], np.int64)).num_rows == 0


def test_a_prefix_searches_exactly_among_what_it_names(vectors, index_uri):
    index = CorpusIndex(index_uri, MODEL)
    rows = prefixed(vectors, "b")
    query = clustered(1, seed=2)
    similarities, found = index.search(query, 20, prefix="/b/")
    order = np.argsort(-(vectors[rows] @ query[0]), kind="stable")[:20]
    assert set(found[0]) == set(rows[order])
    np.testing.assert_allclose(similarities[0], (vectors[rows] @ query[0])[order], rtol=1e-5)
    assert index.count("/b/") == 500
    assert set(index.search(query, 500, prefix="/b/")[1][0]) == set(rows)
    with pytest.raises(RecoError, match=r"501 exemplars are asked for, but it has 500 images under /b/"):
        index.search(query, 501, prefix="/b/")
    assert index.count("/c/") == 0


def test_the_same_command_again_does_nothing_and_other_settings_change_no_flat_index(embeddings, index_uri):
    assert build_index(embeddings, index_uri).new is False
    assert build_index(embeddings, index_uri, IndexSettings(nprobe=3)).new is False


def test_an_index_of_version_0_1_goes_on_working(vectors, embeddings, index_uri, tmp_path):
    """One flat file and one table, no list of shards, nothing about settings in its manifest."""
    old = tmp_path / "old"
    plain = faiss.IndexFlatIP(vectors.shape[1])
    plain.add(vectors)
    table = storage.read_table(storage.join(embeddings, "embeddings"))
    storage.write_bytes(f"{old}/vectors.faiss", faiss.serialize_index(plain).tobytes())
    storage.write_table(f"{old}/images.parquet", table.drop_columns(["embedding"]))
    manifest = json.loads(storage.read_bytes(f"{index_uri}/manifest.json"))
    manifest["content"] = {"dim": 32, "model": MODEL, "factory": "Flat"}
    storage.write_bytes(f"{old}/manifest.json", json.dumps(manifest).encode())
    queries = clustered(3, seed=5)
    index, new = CorpusIndex(str(old), MODEL), CorpusIndex(index_uri, MODEL)
    np.testing.assert_array_equal(index.search(queries, 30)[1], new.search(queries, 30)[1])
    np.testing.assert_array_equal(index.search(queries, 30, "/a/")[1], new.search(queries, 30, "/a/")[1])
    assert index.images.take(np.array([1499]))["uri"].to_pylist() == ["/a/0001499.jpg"]
    assert build_index(embeddings, str(old)).new is False


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("IVF16,Nonsense", "setting index.factory: FAISS cannot create 'IVF16,Nonsense' with 32 dimensions"),
        ("HNSW32", "'HNSW32' is neither Flat nor an inverted file"),
        ("IVF4096,SQ8", "1,500 images are too few for 'IVF4096,SQ8': leave it at auto"),
    ],
)
def test_factories_that_cannot_be_are_refused(embeddings, factory, message):
    with pytest.raises(RecoError, match=message.replace("(", r"\(")):
        plan_index(embeddings, IndexSettings(factory=factory))


def test_a_sample_smaller_than_the_lists_is_refused(embeddings):
    with pytest.raises(RecoError, match=r"setting index.sample: 'IVF32,SQ8' needs 32 vectors at least"):
        plan_index(embeddings, IndexSettings(factory="IVF32,SQ8", sample=10))


def test_rows_that_are_gone_are_noticed(vectors, tmp_path):
    uri = write_embeddings(tmp_path / "e", vectors[:900])
    (tmp_path / "e/embeddings/00000001.parquet").unlink()
    with pytest.raises(
        RecoError, match=r"its files hold 600 rows, its manifest says 900: delete it and embed"
    ):
        build_index(uri, str(tmp_path / "out"))


@pytest.mark.parametrize("damage", ["cut", "gone", "noise"])
def test_a_damaged_shard_is_one_line(embeddings, damage, tmp_path):
    out = tmp_path / "out"
    build_index(embeddings, str(out))
    file = out / "shards/000000.faiss"
    if damage == "gone":
        file.unlink()
    else:
        data = file.read_bytes()
        file.write_bytes(data[:-1000] if damage == "cut" else b"x" * len(data))
    with pytest.raises(RecoError, match=r"damaged .*: delete it and index again"):
        CorpusIndex(str(out), MODEL)


def test_another_model_is_refused(index_uri):
    with pytest.raises(RecoError, match="made with model synthetic, but this run uses other"):
        CorpusIndex(index_uri, "other")


def test_a_shard_in_a_store_is_downloaded_once(index_uri, tmp_path, monkeypatch):
    """fsspec's memory:// stands for any store whose files cannot be mapped."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in ("manifest.json", "shards/000000.faiss", "images/000000.parquet"):
        memory.pipe_file(f"/index-test/{file}", storage.read_bytes(storage.join(index_uri, file)))
    monkeypatch.setenv("RECO_CACHE", str(tmp_path / "cache"))
    queries = clustered(3, seed=6)
    index = CorpusIndex("memory://index-test", MODEL)
    expected = CorpusIndex(index_uri, MODEL).search(queries, 10)[1]
    np.testing.assert_array_equal(index.search(queries, 10, "/")[1], expected)
    (cached,) = (tmp_path / "cache").rglob("*.faiss")
    memory.rm("/index-test/shards/000000.faiss")
    assert len(CorpusIndex("memory://index-test", MODEL)) == 1500
    cached.unlink()
    with pytest.raises(RecoError, match=r"cannot be downloaded to .*cache"):
        CorpusIndex("memory://index-test", MODEL)


def test_samples_come_from_all_over_the_corpus(vectors, embeddings):
    parts = list_parts(embeddings, artifacts.read_manifest(embeddings, EmbeddingsContent).content)
    sample = sample_vectors(embeddings, parts, 500, seed=0)
    assert len(sample) == pytest.approx(500, abs=5)
    places = {row.tobytes(): n for n, row in enumerate(vectors)}
    found = np.array([places[row.tobytes()] for row in sample])
    assert len(set(found)) == len(found)
    assert set(found // 300) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(
        rows_at(embeddings, parts, np.array([0, 299, 300, 1499])), vectors[[0, 299, 300, 1499]]
    )


def test_exact_answers_in_pieces_are_those_of_the_whole(vectors):
    queries = Queries(clustered(5, seed=3), np.full(5, -1))
    answers = ExactAnswers(queries)
    for start in range(0, 1500, 400):
        answers.add(vectors[start : start + 400], start)
    similarities, rows = answers.result()
    whole = queries.vectors @ vectors.T
    np.testing.assert_allclose(similarities, -np.sort(-whole, axis=1)[:, :51], rtol=1e-5)
    assert all(set(mine) == set(np.argsort(-each)[:51]) for mine, each in zip(rows, whole, strict=True))


def test_answers_merge_to_the_best_of_all():
    first = (np.array([[0.9, 0.5, -np.inf]]), np.array([[3, 1, -1]]))
    second = (np.array([[0.8, 0.5, 0.4]]), np.array([[12, 11, 10]]))
    similarities, rows = merge_answers([first, second], 4)
    assert rows.tolist() == [[3, 12, 1, 11]]
    assert similarities.tolist() == [[0.9, 0.8, 0.5, 0.5]]


def test_recall_leaves_the_query_itself_out():
    exact = np.array([[7, 1, 2, 3]])
    assert recall(np.array([[7, 1, 9, -1]]), exact, np.array([7])) == pytest.approx(1 / 3)
    assert recall(np.array([[7, 1, 9, -1]]), exact, np.array([-1])) == pytest.approx(1 / 2)


def test_nprobe_is_chosen_on_half_of_the_queries_and_measured_on_the_other():
    exact = np.tile(np.arange(51), (8, 1))
    some, most = exact.copy(), exact.copy()
    some[:, 25:] = -1
    most[0::2, 48:] = -1  # found well by the queries that choose
    most[1::2, 40:] = -1  # and less well by the others
    answers = {
        step: (np.zeros((8, 51)), rows) for step, rows in ((EXACT, exact), (1, some), (2, most), (4, exact))
    }
    nprobe, found = measure(answers, np.full(8, -1), target=0.9)
    assert nprobe == 2
    assert found == Recall(k=50, queries=4, images=0.8, between=0.8)


def test_gpus_are_used_if_faiss_has_them(monkeypatch):
    """Structure only: no GPU has ever run this."""
    flat = faiss.IndexFlatIP(4)
    assert faiss_library.on_gpus(flat) is flat
    fake = SimpleNamespace(get_num_gpus=lambda: 2, index_cpu_to_all_gpus=lambda index: ("on gpus", index))
    monkeypatch.setattr(faiss_library, "load_faiss", lambda: fake)
    assert faiss_library.on_gpus(flat) == ("on gpus", flat)
