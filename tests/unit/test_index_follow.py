"""`index --follow`: what was embedded since is added, what is there stays, and what cannot be added to is named."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vectors import MODEL, clustered, follow_embeddings, write_embeddings

import reco_ray
from reco_ray.corpus.index import CorpusIndex
from reco_ray.errors import RecoError
from reco_ray.files.verify import verify

VECTORS = clustered(1500)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An index of 900 images, of whose embeddings there are 1,200 now."""
    write_embeddings(tmp_path / "embeddings", VECTORS[:900])
    reco_ray.index(embeddings=tmp_path / "embeddings", out=tmp_path / "index")
    follow_embeddings(str(tmp_path / "embeddings"), VECTORS[:1200])
    return tmp_path


def follow(place: Path, **options):
    return reco_ray.index(embeddings=place / "embeddings", out=place / "index", follow=True, **options)


def test_what_is_new_is_added_and_what_is_there_stays(place: Path) -> None:
    shard = place / "index" / "shards" / "000000.faiss"
    before = shard.read_bytes(), shard.stat().st_mtime_ns
    made = follow(place)
    assert made.new
    assert made.manifest.counts == {"images": 1200}
    assert (shard.read_bytes(), shard.stat().st_mtime_ns) == before
    follow_embeddings(str(place / "embeddings"), VECTORS)
    assert follow(place).manifest.counts == {"images": 1500}
    assert not follow(place).new
    assert verify(str(place / "index")).differences == []
    queries = clustered(20, seed=5)
    index = CorpusIndex(str(place / "index"), MODEL)
    assert len(index.manifest.content.shards) == 3
    found = index.search(queries, 25)[1]
    exact = np.argsort(-(queries @ VECTORS.T), axis=1)[:, :25]
    assert (np.sort(found) == np.sort(exact)).all()
    rows = [0, 899, 900, 1199, 1200, 1499]
    assert index.images.take(np.array(rows))["image_id"].to_pylist() == [f"{row:064x}" for row in rows]


def test_what_a_kill_left_half_way_is_made_again(place: Path) -> None:
    """A further shard of a run that was killed, before still more was embedded."""
    follow(place)
    manifest = place / "index" / "manifest.json"
    stored = json.loads(manifest.read_text())
    stored["content"]["shards"].pop()
    stored["counts"]["images"] = 900
    stored["made_from"]["embeddings_made_at"] = "before"
    manifest.write_text(json.dumps(stored))
    follow_embeddings(str(place / "embeddings"), VECTORS)
    assert follow(place).manifest.counts == {"images": 1500}
    index = CorpusIndex(str(place / "index"), MODEL)
    assert [shard.images for shard in index.manifest.content.shards] == [900, 600]
    assert (index.search(VECTORS[[0, 1000, 1499]], 1)[1][:, 0] == [0, 1000, 1499]).all()


def test_an_index_that_is_not_there_is_built(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "embeddings", VECTORS[:900])
    assert follow(tmp_path).manifest.counts == {"images": 900}


def test_what_cannot_be_added_to_is_named(place: Path) -> None:
    def line(**options) -> str:
        with pytest.raises(RecoError) as error:
            follow(place, **options)
        return str(error.value)

    assert "--follow keeps Flat" in line(set=["index.factory=IVF16,SQ8"])
    assert "give either it or --follow" in line(explain=True)
    other = write_embeddings(place / "other", VECTORS[:900])
    with pytest.raises(RecoError, match=r"is the index of .*embeddings, made with synthetic"):
        reco_ray.index(embeddings=other, out=place / "index", follow=True)
    part = str(place / "embeddings" / "embeddings" / "00000000.parquet")
    whole = pq.read_table(part)
    for fewer in (whole.slice(10), pa.concat_tables([whole.slice(1), whole.slice(0, 1)]).slice(0, 299)):
        pq.write_table(fewer, part)
        assert "images have gone from" in line()
    # As many rows as before, and others behind them.
    others = whole.set_column(0, "image_id", pa.array([f"{row:064x}" for row in range(9000, 9300)]))
    pq.write_table(whole, part)
    pq.write_table(others, part.replace("00000.parquet", "00002.parquet"))
    assert "images have gone from" in line()
