"""Near-duplicates of an index: the groups that comparing all pairs gives, one exemplar of each, and bad input."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from vectors import MODEL, clustered, write_embeddings

import reco_ray
from reco_ray.cli import main
from reco_ray.corpus.image_groups import connected
from reco_ray.corpus.index import CorpusIndex, build_index
from reco_ray.errors import RecoError

SIMILARITY = 0.97


def copies(vectors: np.ndarray, noise: float, seed: int) -> np.ndarray:
    changed = vectors + noise * np.random.default_rng(seed).normal(size=vectors.shape)
    changed /= np.linalg.norm(changed, axis=1, keepdims=True)
    return changed.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Images of their own, forty pairs, ten triples that a middle image connects, and sixty copies of one image."""
    base = clustered(900, dim=64)
    pairs = copies(base[:40], 0.015, 1)
    one = copies(base[40:50], 0.02, 2)
    chain = copies(one, 0.02, 3)
    many = np.repeat(base[50:51], 60, axis=0)
    found = np.concatenate([base, pairs, one, chain, many])
    return found[np.random.default_rng(4).permutation(len(found))]


@pytest.fixture(scope="module")
def folder(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("duplicates")
    embeddings = write_embeddings(folder / "embeddings", vectors)
    build_index(embeddings, str(folder / "index"))
    return folder


def expected(vectors: np.ndarray) -> set[frozenset[int]]:
    """Connected groups of all pairs, compared one by one."""
    near = np.argwhere(np.triu(vectors @ vectors.T >= SIMILARITY, 1))
    groups: list[set[int]] = []
    for first, second in near.tolist():
        touched = [group for group in groups if first in group or second in group]
        groups = [group for group in groups if group not in touched]
        groups.append(set().union({first, second}, *touched))
    return {frozenset(group) for group in groups}


def found_groups(out: Path) -> list[list[int]]:
    rows = pq.read_table(out / "groups.parquet").to_pylist()
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(int(row["image_id"], 16))
    assert all(sum(row["kept"] for row in rows if row["group"] == group) == 1 for group in groups)
    return list(groups.values())


def test_groups_are_those_of_all_pairs(
    folder: Path, vectors: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["duplicates", "--index", str(folder / "index"), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    groups, known = found_groups(tmp_path / "out"), expected(vectors)
    assert {frozenset(group) for group in groups} == known
    assert len(known) > 30
    assert max(map(len, known)) >= 61  # more than a search is first asked for
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)
    assert printed.out.splitlines()[0] == f"group 0: {len(groups[0])} images"
    assert f"and {len(groups[0]) - 10} more" in printed.out
    duplicates = sum(map(len, groups)) - len(groups)
    assert f"{len(vectors):,} images, {len(groups)} groups, {duplicates} duplicates" in printed.err
    rows = pq.read_table(tmp_path / "out" / "groups.parquet").to_pylist()
    own = vectors @ vectors.T - 2 * np.eye(len(vectors))
    for row in rows:
        assert row["similarity"] == pytest.approx(own[int(row["image_id"], 16)].max(), abs=1e-5)


def test_what_a_kill_left_is_finished(
    folder: Path, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reco_ray.corpus.duplicates._PART_ROWS", 300)
    out, index = tmp_path / "out", folder / "index"
    reco_ray.duplicates(index=index, out=out)
    first = pq.read_table(out / "groups.parquet")
    parts = sorted((out / "pairs").glob("*.parquet"))
    assert len(parts) == -(-len(vectors) // 300)
    kept = {part: part.stat().st_mtime_ns for part in parts[1:]}
    parts[0].unlink()
    (out / "manifest.json").unlink()
    again = reco_ray.duplicates(index=index, out=out)
    assert again.new
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    assert pq.read_table(out / "groups.parquet").equals(first)
    assert not reco_ray.duplicates(index=index, out=out).new
    with pytest.raises(RecoError, match=r"similarity"):
        reco_ray.duplicates(index=index, out=out, similarity=0.9)


def test_of_a_group_the_nearest_image_is_found(folder: Path, vectors: np.ndarray, tmp_path: Path) -> None:
    made = reco_ray.duplicates(index=folder / "index", out=tmp_path / "out")
    groups = {row: number for number, group in enumerate(expected(vectors)) for row in group}
    queries = np.stack([vectors[len(vectors) // 2], *(vectors[list(groups)[:2]])])
    index = CorpusIndex(str(folder / "index"), MODEL, made.uri)
    similarities, rows = index.search_distinct(queries, 20)
    everything = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")
    for found, values, ranking in zip(rows, similarities, everything, strict=True):
        seen: set[object] = set()
        distinct = []
        for row in ranking.tolist():
            name = groups.get(row, ("alone", row))
            if name not in seen:
                seen.add(name)
                distinct.append(row)
        ours = [groups.get(row, ("alone", row)) for row in found.tolist()]
        assert ours == [groups.get(row, ("alone", row)) for row in distinct[:20]]
        assert (np.diff(values) <= 1e-6).all()
    alone = len(vectors) - len(groups) + len(set(groups.values()))
    assert index.search_distinct(queries, alone)[1].shape == (3, alone)
    with pytest.raises(
        RecoError, match=rf"without near-duplicates it has {alone} images: use --exemplars {alone}"
    ):
        index.search_distinct(queries, alone + 1)
    plain = CorpusIndex(str(folder / "index"), MODEL)
    assert (plain.search_distinct(queries, 20)[1] == plain.search(queries, 20)[1]).all()


def test_a_corpus_without_near_duplicates_has_no_groups(tmp_path: Path) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings", np.eye(8, dtype=np.float32))
    build_index(embeddings, str(tmp_path / "index"))
    made = reco_ray.duplicates(index=tmp_path / "index", out=tmp_path / "out")
    assert made.manifest is not None
    assert made.manifest.counts == {"images": 8, "groups": 0, "duplicates": 0}
    assert made.groups == []


def test_bad_input_is_named(folder: Path, vectors: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(RecoError, match="this index artifact is not there"):
        reco_ray.duplicates(index=tmp_path / "nothing", out=tmp_path / "out")
    with pytest.raises(RecoError, match="similarity: input should be less than or equal to 1"):
        reco_ray.duplicates(index=folder / "index", similarity=97, out=tmp_path / "out")
    made = reco_ray.duplicates(index=folder / "index", out=tmp_path / "made")
    embeddings = write_embeddings(tmp_path / "embeddings", vectors[:400])
    build_index(embeddings, str(tmp_path / "index"))
    with pytest.raises(RecoError, match="run `reco-ray duplicates` with this index"):
        CorpusIndex(str(tmp_path / "index"), MODEL, made.uri)
    manifest = tmp_path / "embeddings" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"made_at": "2', '"made_at": "3'))
    with pytest.raises(RecoError, match="have changed since it was built"):
        reco_ray.duplicates(index=tmp_path / "index", out=tmp_path / "out")


def test_rows_are_connected_through_others() -> None:
    pairs = np.array([[5, 9], [2, 5], [7, 8], [9, 2], [8, 30]])
    assert connected(pairs).tolist() == [[2, 2], [5, 2], [7, 7], [8, 7], [9, 2], [30, 7]]
    assert connected(np.zeros((0, 2), np.int64)).shape == (0, 2)
