"""Checksums of artifacts: every file is in them, every change is found."""

import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from reco_ray.cli import main
from reco_ray.contents import IndexContent, MasksContent
from reco_ray.errors import RecoError
from reco_ray.files import artifacts, storage
from reco_ray.files.checksums import with_checksums
from reco_ray.files.verify import Difference, verify

CONTENT = MasksContent(labels=[], palette=[], references="")
ROOTS = ["local", "memory://checksums"]


def make(uri: str) -> artifacts.Manifest:
    """A small artifact: two shards as workers write them, a file of the driver's, an artifact inside."""
    writer = artifacts.ArtifactWriter(uri, MasksContent, {"images": "some"})
    assert writer.finished() is None
    for shard in ("000", "001"):
        with_checksums(write_shard, writer.uri, shard)
    storage.write_bytes(storage.join(writer.uri, "vectors.faiss"), b"written by the driver")
    inner = artifacts.ArtifactWriter(storage.join(writer.uri, "index"), IndexContent, {})
    assert inner.finished() is None
    inner.commit({}, IndexContent(dim=8, model="m", factory="Flat"))
    return writer.commit({"images": 2}, CONTENT)


def write_shard(uri: str, shard: str) -> str:
    storage.write_bytes(storage.join(uri, "masks", "street", f"a #{shard} 100%.png"), shard.encode())
    storage.write_table(storage.join(uri, "regions", f"{shard}.parquet"), pa.table({"label": [1]}))
    return shard


@pytest.fixture
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for an artifact: on disk, or in fsspec's store in memory."""
    where = getattr(request, "param", "local")
    return str(tmp_path / "artifact") if where == "local" else f"{where}/{tmp_path.name}"


@pytest.mark.parametrize("uri", ROOTS, indirect=True)
def test_a_commit_lists_every_file_and_verify_finds_them_unchanged(uri: str) -> None:
    manifest = make(uri)
    found = verify(uri)
    assert found.differences == []
    assert manifest.checksums is not None
    assert found.files == manifest.checksums.files == 6
    sums = {r["path"]: r for r in storage.read_table(storage.join(uri, "checksums.parquet")).to_pylist()}
    assert set(sums) == {
        "started.json",
        "vectors.faiss",
        "masks/street/a #000 100%.png",
        "masks/street/a #001 100%.png",
        "regions/000.parquet",
        "regions/001.parquet",
    }
    for path, row in sums.items():
        data = storage.read_bytes(storage.join(uri, path))
        assert (row["size"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert not storage.exists(storage.join(uri, "checksums"))  # the workers' own files are gone
    assert verify(storage.join(uri, "index")).differences == []


@pytest.mark.parametrize("uri", ROOTS, indirect=True)
def test_every_kind_of_change_is_named(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(uri)
    storage.remove(storage.join(uri, "vectors.faiss"))
    storage.write_bytes(storage.join(uri, "masks/street/a #000 100%.png"), b"00x")
    storage.write_bytes(storage.join(uri, "masks/street/a #001 100%.png"), b"0011")
    storage.write_bytes(storage.join(uri, "regions/002.parquet"), b"a table that readers would take")
    assert verify(uri).differences == [
        Difference("masks/street/a #000 100%.png", "content changed"),
        Difference("masks/street/a #001 100%.png", "4 bytes instead of 3"),
        Difference("regions/002.parquet", "not in the checksums"),
        Difference("vectors.faiss", "missing"),
    ]
    with pytest.raises(SystemExit) as exit_:
        main(["verify", uri])
    assert exit_.value.code == 1
    printed = capsys.readouterr()
    assert "vectors.faiss: missing" in printed.out
    assert printed.err == (
        "error: 4 files are not what was committed: make the artifact again, or fetch it again\n"
    )


def test_checksums_that_were_changed_along_with_a_file_do_not_pass(uri: str) -> None:
    make(uri)
    storage.remove(storage.join(uri, "vectors.faiss"))
    sums = storage.read_table(storage.join(uri, "checksums.parquet"))
    without = sums.filter(pa.compute.not_equal(sums["path"], "vectors.faiss"))
    storage.write_table(storage.join(uri, "checksums.parquet"), without)
    assert verify(uri).differences == [Difference("checksums.parquet", "content changed")]
    storage.remove(storage.join(uri, "checksums.parquet"))
    assert verify(uri).differences == [Difference("checksums.parquet", "missing")]


def test_what_is_written_again_after_its_note_is_read_back(uri: str) -> None:
    writer = artifacts.ArtifactWriter(uri, MasksContent, {})
    writer.finished()
    with_checksums(write_shard, uri, "000")
    # Same size, as after a driver that rewrites a worker's table.
    storage.write_bytes(storage.join(uri, "masks/street/a #000 100%.png"), b"0x0")
    writer.commit({}, CONTENT)
    assert verify(uri).differences == []


def test_what_a_killed_worker_left_without_a_note_is_read_back(uri: str) -> None:
    writer = artifacts.ArtifactWriter(uri, MasksContent, {})
    writer.finished()
    with_checksums(write_shard, uri, "000")
    write_shard(uri, "001")
    assert writer.commit({}, CONTENT).checksums is not None
    assert verify(uri).differences == []


def test_files_that_workers_noted_are_not_read_at_the_commit(uri: str) -> None:
    writer = artifacts.ArtifactWriter(uri, MasksContent, {})
    writer.finished()
    with_checksums(write_shard, uri, "000")
    secret = Path(uri) / "masks/street/a #000 100%.png"
    before = os.stat(secret)
    secret.write_bytes(b"0?0")  # another content of the same size and time: only a reader would see it
    os.utime(secret, ns=(before.st_atime_ns, before.st_mtime_ns))
    writer.commit({}, CONTENT)
    assert verify(uri).differences == [Difference("masks/street/a #000 100%.png", "content changed")]


def test_a_commit_that_was_killed_before_its_manifest_is_not_done_again(uri: str) -> None:
    make(uri)
    sums = Path(uri) / "checksums.parquet"
    before = sums.stat().st_mtime_ns
    (Path(uri) / "manifest.json").unlink()
    writer = artifacts.ArtifactWriter(uri, MasksContent, {"images": "some"})
    assert writer.finished() is None
    writer.commit({"images": 2}, CONTENT)
    assert sums.stat().st_mtime_ns == before
    assert verify(uri).differences == []


def test_an_artifact_without_checksums_is_named(uri: str) -> None:
    make(uri)
    file = Path(uri) / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["checksums"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(RecoError, match=r"has no checksums, reco-ray .* did not keep any"):
        verify(uri)
    file.unlink()
    with pytest.raises(RecoError, match="this artifact is unfinished"):
        verify(uri)
