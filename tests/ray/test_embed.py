"""The embed stage on real clusters: every file accounted for, the same embeddings on one CPU or four."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from artifacts import embeddings, files, rows
from images import write_photographs

from reco_ray.config import Settings, load_settings
from reco_ray.corpus.embed import embed_pixels
from reco_ray.corpus.index import CorpusIndex, build_index
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.corpus.stage import embed_corpus
from reco_ray.errors import OtherModelError, SettingError
from reco_ray.models import load_language_image_model

SHARD_SIZE = 4


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings("mini", overrides=[f"embed.shard_size={SHARD_SIZE}", "embed.batch_size=3"])


@pytest.fixture(scope="module")
def model(settings):
    return load_language_image_model(settings.models.retrieval)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """14 photographs, three copies of some in a folder below, and two bad files.

    The listing puts copies beside their originals, in the same shard or the next.
    """
    folder = tmp_path_factory.mktemp("corpus")
    written = write_photographs(folder, 14)
    (folder / "copies").mkdir()
    for file in written[::5]:
        shutil.copy(file, folder / "copies" / f"copy of {file.name}")
    (folder / "cut.jpg").write_bytes(written[3].read_bytes()[:900])
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def expected(corpus, model, settings) -> dict[str, np.ndarray]:
    """The embeddings, computed here without Ray."""
    uris = [str(file) for file in sorted(corpus.glob("0*.jpg"))]
    table = load_images(uris, model.transform.crop, max_pixels=10**8, short_side=model.transform.size)
    vectors = embed_pixels(model, [pixels_of(table, row) for row in range(len(uris))], batch_size=5)
    return dict(zip(table["image_id"].to_pylist(), vectors.astype(np.float32), strict=True))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same images, and the same embeddings up to the rounding of other batches."""
    assert found.keys() == expected.keys()
    assert min(float(found[key] @ expected[key]) for key in expected) > 0.995


@pytest.mark.parametrize("cpus", [pytest.param(cpus, marks=pytest.mark.cpus(cpus)) for cpus in (1, 4)])
@pytest.mark.timeout(180)
def test_every_file_is_embedded_rejected_or_a_duplicate(cpus, corpus, settings, expected, tmp_path):
    """On one CPU too, where workers that took all of it would starve their readers for ever."""
    outcome = embed_corpus(str(corpus), str(tmp_path / "out"), settings)
    manifest, new = outcome.manifest, outcome.new
    assert new
    assert manifest.counts == {"images": 19, "embedded": 14, "rejected": 2, "duplicates": 3}
    assert_same(embeddings(tmp_path / "out"), expected)

    table = rows(tmp_path / "out", "embeddings")
    by_id = {hashlib.sha256(file.read_bytes()).hexdigest() for file in corpus.glob("0*.jpg")}
    assert {row["image_id"] for row in table} == by_id
    for row in table:
        assert hashlib.sha256(Path(row["uri"]).read_bytes()).hexdigest() == row["image_id"]
        assert max(row["width"], row["height"]) == 96

    reasons = {Path(row["uri"]).name: row["reason"] for row in rows(tmp_path / "out", "rejected")}
    assert reasons.keys() == {"cut.jpg", "empty.png"}
    assert reasons["cut.jpg"].startswith("damaged: ")
    assert reasons["empty.png"] == "empty file"

    kept = {row["uri"] for row in table}
    for row in rows(tmp_path / "out", "duplicates"):
        assert row["duplicate_of"] in kept
        assert Path(row["uri"]).read_bytes() == Path(row["duplicate_of"]).read_bytes()


@pytest.mark.cpus(2)
class TestOnOneCluster:
    """What does not depend on the cluster's size."""

    @pytest.fixture(scope="class")
    def listed(self, corpus, tmp_path_factory) -> tuple[Path, list[Path]]:
        """A list file says no sizes, so its order is the shards': copies lie where they are put."""
        folder = tmp_path_factory.mktemp("listed")
        photographs = sorted(corpus.glob("0*.jpg"))[:6]
        order = [0, 1, 0, 2, 3, 3, 4, 1, 5, 3, 5, 5]  # by shard: 0 1 0 2 | 3 3 4 1 | 5 3 5 5
        again = folder / "again.jpg"
        shutil.copy(photographs[3], again)
        names = [str(photographs[number]) for number in order]
        names[9] = str(again)
        (folder / "list.txt").write_text("\n".join(names))
        return folder, photographs

    @pytest.fixture(scope="class")
    def made(self, listed, settings, tmp_path_factory) -> Path:
        out = tmp_path_factory.mktemp("made") / "out"
        embed_corpus(str(listed[0] / "list.txt"), str(out), settings)
        return out

    def test_duplicates_within_and_across_shards_are_embedded_once(self, listed, made, settings):
        photographs = listed[1]
        outcome = embed_corpus(str(listed[0] / "list.txt"), str(made), settings)
        manifest, new = outcome.manifest, outcome.new
        assert not new
        assert manifest.counts == {"images": 12, "embedded": 6, "rejected": 0, "duplicates": 6}
        assert [row["uri"] for row in rows(made, "embeddings")] == [str(file) for file in photographs]
        pairs = sorted((row["uri"], row["duplicate_of"]) for row in rows(made, "duplicates"))
        same = [(str(photographs[n]),) * 2 for n in (0, 1, 3, 5, 5)]
        assert pairs == sorted([*same, (str(listed[0] / "again.jpg"), str(photographs[3]))])

    def test_a_second_run_does_nothing(self, listed, made, settings):
        before = files(made)
        outcome = embed_corpus(str(listed[0] / "list.txt"), str(made), settings)
        manifest, new = outcome.manifest, outcome.new
        assert not new
        assert files(made) == before
        assert manifest.counts["embedded"] == 6

    def test_another_corpus_or_other_settings_are_refused_untouched(self, corpus, listed, made, settings):
        before = files(made)
        with pytest.raises(OtherModelError, match=r"made with corpus = .*, now .*: choose another"):
            embed_corpus(str(corpus), str(made), settings)
        other = load_settings("mini", overrides=["embed.shard_size=5", "embed.batch_size=3"])
        with pytest.raises(OtherModelError, match=r"made with embed\.shard_size = 4, now 5:"):
            embed_corpus(str(listed[0] / "list.txt"), str(made), other)
        assert files(made) == before

    def test_the_index_finds_every_image_by_its_own_embedding(self, listed, made, model, tmp_path):
        outcome = build_index(str(made), str(tmp_path / "index"))
        manifest, new = outcome.manifest, outcome.new
        assert new
        assert manifest.counts == {"images": 6}
        index = CorpusIndex(str(tmp_path / "index"), model.fingerprint)
        vectors = embeddings(made)
        similarities, found = index.search(np.stack(list(vectors.values())), 6)
        assert index.images.take(found[:, 0])["image_id"].to_pylist() == list(vectors)
        assert (np.diff(similarities, axis=1) <= 0).all()
        assert similarities[:, 0] == pytest.approx(1, abs=2e-3)
        with pytest.raises(
            SettingError, match=r"7 exemplars are asked for, but it has 6 images: use --exemplars 6"
        ):
            index.search(np.stack(list(vectors.values())), 7)

        before = files(tmp_path / "index")
        assert build_index(str(made), str(tmp_path / "index")).new is False
        assert files(tmp_path / "index") == before

    @pytest.mark.usefixtures("in_process")
    def test_images_in_parquet_are_embedded_like_files(self, corpus, settings, expected, tmp_path):
        photographs = sorted(corpus.glob("0*.jpg"))
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in photographs[:5]]
        images.append({"bytes": b"no image", "path": "bad.jpg"})
        pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet", row_group_size=2)
        manifest = embed_corpus(str(tmp_path / "t.parquet"), str(tmp_path / "out"), settings).manifest
        assert manifest.counts == {"images": 6, "embedded": 5, "rejected": 1, "duplicates": 0}
        assert_same(embeddings(tmp_path / "out"), dict(list(expected.items())[:5]))
        assert rows(tmp_path / "out", "rejected") == [
            {"uri": f"{tmp_path}/t.parquet#5", "reason": "not an image that can be decoded"}
        ]
