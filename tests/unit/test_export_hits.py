"""The images that a search has found, as a folder or a tar: whatever held them, with where they came from."""

import csv
import hashlib
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encoded, heic, photograph, write_photographs
from stores import s3_store

from reco_ray.corpus.export_hits import export_hits
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.read import list_images, read_image_bytes
from reco_ray.errors import RecoError
from reco_ray.files import storage


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Images in a folder, a tar and a table; among them PNG, HEIC and WebP."""
    folder = tmp_path / "photos"
    write_photographs(folder, 2)
    (folder / "деревня #1.png").write_bytes(encoded(photograph(2), "PNG"))
    (folder / "phone.heic").write_bytes(heic(photograph(3)))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("x.webp", encoded(photograph(4), "WEBP")), ("y.jpg", encoded(photograph(5)))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    pq.write_table(
        pa.table({"image": [encoded(photograph(6)), encoded(photograph(7))]}), tmp_path / "t.parquet"
    )
    return [str(folder), str(tmp_path / "a.tar"), str(tmp_path / "t.parquet")]


def hits_of(sources: list[str]) -> pa.Table:
    """A table as `search_corpus` returns it, of all images."""
    uris = [uri for source in sources for uri in list_images(source).table["uri"].to_pylist()]
    ids = [hashlib.sha256(read_image_bytes(uri)).hexdigest() for uri in uris]
    count = len(uris)
    return pa.table(
        {
            "rank": pa.array(range(1, count + 1), pa.int32()),
            "similarity": [1 / (number + 1) for number in range(count)],
            "image_id": ids,
            "uri": uris,
            "width": [96] * count,
            "height": [64] * count,
        }
    )


def rows_of(manifest: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(manifest)))


@pytest.mark.parametrize("place", ["out", "out.tar"])
def test_every_image_is_there_as_it_was_and_the_manifest_says_from_where(
    sources: list[str], tmp_path: Path, place: str
) -> None:
    hits, out = hits_of(sources), tmp_path / place
    assert export_hits(hits, str(out)) == 8
    if place == "out":
        found = {file.name: file.read_bytes() for file in out.iterdir()}
    else:
        with tarfile.open(out) as tar:
            found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    rows = rows_of(found.pop("manifest.csv").decode())
    assert [row["uri"] for row in rows] == hits["uri"].to_pylist()
    assert [row["rank"] for row in rows] == [str(number) for number in range(1, 9)]
    for row in rows:
        assert found.pop(row["file"]) == read_image_bytes(row["uri"])
        assert not row["problem"]
    assert not found
    assert {Path(row["file"]).suffix for row in rows} == {".jpg", ".png", ".heic", ".webp"}
    source = str(out) if place == "out" else str(tmp_path / "out.tar")
    assert list_images(source).table.num_rows == 8  # what was found is a corpus again


def test_a_store_is_read_and_written(sources: list[str]) -> None:
    with s3_store("found"):
        for file in Path(sources[0]).iterdir():
            storage.write_bytes(f"s3://found/photos/{file.name}", file.read_bytes())
        hits = hits_of(["s3://found/photos"])
        for out in ("s3://found/out", "s3://found/out.tar"):
            assert export_hits(hits, out) == 4
        assert len(list_files("s3://found/out").table) == 4
        assert len(rows_of(storage.read_bytes("s3://found/out/manifest.csv").decode())) == 4
        assert list_images("s3://found/out.tar").table.num_rows == 4


def test_what_is_gone_or_changed_has_a_problem(sources: list[str], tmp_path: Path) -> None:
    hits = hits_of(sources[:1])
    gone, changed = (Path(uri) for uri in hits["uri"].to_pylist()[:2])
    gone.unlink()
    changed.write_bytes(encoded(photograph(9)))
    assert export_hits(hits, str(tmp_path / "out")) == 3
    first, second, *others = rows_of((tmp_path / "out" / "manifest.csv").read_text())
    assert (first["file"], first["problem"]) == ("", "cannot be read: No such file or directory")
    assert second["file"].startswith("00002.")
    assert second["problem"] == "changed since it was embedded"
    assert not any(row["problem"] for row in others)


def test_what_cannot_be_is_one_line(sources: list[str], tmp_path: Path) -> None:
    hits = hits_of(sources[:1])
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("mine")
    (tmp_path / "used.tar").write_text("mine")
    for place in ("used", "used.tar"):
        with pytest.raises(RecoError, match="is there already: choose another place"):
            export_hits(hits, str(tmp_path / place))
    for uri in hits["uri"].to_pylist():
        Path(uri).unlink()
    for place in ("out", "out.tar"):
        with pytest.raises(RecoError, match="none of the 4 images can be read"):
            export_hits(hits, str(tmp_path / place))
        assert not (tmp_path / place).exists()
