"""Google's storage, against an emulator on loopback: listing, reading and artifacts as on disk, and what it refuses."""

import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encoded, photograph, write_photographs
from stores import RESET, assert_written_is_read_back, google_store, proxy_to, serving

from reco_ray.contents import IndexContent
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.read import list_images, read_image_bytes
from reco_ray.errors import RecoError
from reco_ray.files import storage
from reco_ray.files.artifacts import ArtifactWriter, read_manifest
from reco_ray.files.filesystems import delete_folder, list_folders
from reco_ray.files.retries import StoreUnavailable
from reco_ray.files.verify import verify


@pytest.fixture(scope="module")
def store():
    with google_store("bucket") as address:
        yield address


@pytest.fixture
def refusing(store, monkeypatch):
    """A proxy before it, which can refuse. Not for `open_file` and Parquet: see `google_store`."""
    with serving(proxy_to(*store)) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.mark.parametrize("name", ["plain.bin", "with space.bin", "with#hash?.bin", "100%.bin", "фото.bin"])
def test_what_is_written_is_read_back(store, name):
    uri = f"gs://bucket/folder of {name}/{name}"
    assert_written_is_read_back(uri)
    with pytest.raises(OSError, match="too large: more than 2 bytes"):
        storage.read_bytes(uri, limit=2)
    storage.remove(uri)
    assert storage.list_names(uri.rpartition("/")[0]) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)


def test_images_files_and_containers_are_listed_and_read(store, tmp_path):
    photographs = write_photographs(tmp_path, 3)
    for file in photographs:
        storage.write_bytes(f"gs://bucket/corpus/a 100%/{file.name}", file.read_bytes())
    listed = list_files("gs://bucket/corpus").table
    assert sorted(listed["size"].to_pylist()) == sorted(file.stat().st_size for file in photographs)
    assert {read_image_bytes(uri) for uri in listed["uri"].to_pylist()} == {
        f.read_bytes() for f in photographs
    }
    assert list_files("gs://bucket/corpus/*/00[01].jpg").table.num_rows == 2

    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for file in photographs:
            tar.add(file, file.name)
    pq.write_table(pa.table({"bytes": [encoded(photograph(7))]}), tmp_path / "t.parquet")
    for name in ("t.tar", "t.parquet"):
        storage.write_bytes(f"gs://bucket/inside/{name}", (tmp_path / name).read_bytes())
    uris = list_images("gs://bucket/inside").table["uri"].to_pylist()
    assert len(uris) == 4
    contents = [encoded(photograph(7)), *(file.read_bytes() for file in photographs)]
    assert sorted(map(read_image_bytes, uris)) == sorted(contents)


def test_what_reco_ray_and_systems_wrote_is_left_out_though_nobody_made_its_folders(store):
    source, image = "gs://bucket/mixed", encoded(photograph(1))
    for name in ("a.jpg", "deep/b.jpg", "web/manifest.json", "web/c.jpg"):
        storage.write_bytes(f"{source}/{name}", image)
    before = list_files(source).fingerprint
    storage.write_bytes(f"{source}/deep/masks/started.json", b'{"kind": "masks", "made_from": {}}')
    for name in ("deep/masks/masks/a.png", "deep/masks/overlays/a.jpg", "out/.reco-ray", "out/report/x.jpg"):
        storage.write_bytes(f"{source}/{name}", image)
    for name in (".git/a.jpg", ".git/b.jpg", "deep/@eaDir/a.jpg", "deep/._b.jpg"):
        storage.write_bytes(f"{source}/{name}", image)
    listing = list_files(source)
    assert listing.fingerprint == before == list_files(f"{source}/**/*.jpg").fingerprint
    assert listing.left_out == {
        "other files": 1,
        "folders that reco-ray wrote": 2,
        "hidden and system files": 3,
    }
    assert list_files(f"{source}/deep/masks/overlays").table.num_rows == 1
    with pytest.raises(RecoError, match="masks: reco-ray wrote this itself"):
        list_files(f"{source}/deep/masks")


def test_folders_are_listed_and_deleted_though_nobody_made_them(store):
    for name in ("a/b/x", "a/y", "c/z", "file"):
        storage.write_bytes(f"gs://bucket/tree/{name}", b"data")
    assert list_folders("gs://bucket/tree") == ["a", "c"]
    delete_folder("gs://bucket/tree/a")
    delete_folder("gs://bucket/tree/nothing")
    assert list_folders("gs://bucket/tree") == ["c"]
    assert storage.list_names("gs://bucket/tree") == ["file"]


def test_an_artifact(store):
    writer = ArtifactWriter("gs://bucket/artifact", IndexContent, {"corpus": "gs://bucket/corpus"})
    assert writer.finished() is None
    storage.write_table("gs://bucket/artifact/tables/0.parquet", pa.table({"a": [1]}))
    storage.write_table("gs://bucket/artifact/tables/1.parquet", pa.table({"a": [2]}))
    manifest = writer.commit({"images": 2}, IndexContent(dim=8, model="m", factory="Flat"))
    assert read_manifest("gs://bucket/artifact", IndexContent) == manifest == writer.finished()
    assert storage.read_table("gs://bucket/artifact/tables")["a"].to_pylist() == [1, 2]
    assert storage.read_footers("gs://bucket/artifact/tables").keys() == {"0.parquet", "1.parquet"}
    assert verify("gs://bucket/artifact").differences == []
    storage.write_bytes("gs://bucket/artifact/tables/1.parquet", b"other")
    assert len(verify("gs://bucket/artifact").differences) == 1


@pytest.mark.parametrize("fault", [503, 429, RESET])
def test_what_may_pass_is_tried_again(refusing, fault):
    """But for the pieces of an upload: how much of it has arrived, the emulator does not tell rightly."""
    refusing.fault = lambda method, path, before: fault if before < 1 and method != "PUT" else None
    storage.write_bytes("gs://bucket/again/a.jpg", b"data")
    assert storage.read_bytes("gs://bucket/again/a.jpg") == b"data"
    assert list_files("gs://bucket/again").table["uri"].to_pylist() == ["gs://bucket/again/a.jpg"]


def test_a_store_that_refuses_is_one_line(refusing, monkeypatch):
    monkeypatch.setenv("RECO_RETRY_SECONDS", "0.5")
    refusing.fault = lambda method, path, before: 503
    with pytest.raises(StoreUnavailable) as caught:
        storage.read_bytes("gs://bucket/a")
    assert str(caught.value) == (
        "gs://bucket/a: the store does not answer: UNAVAILABLE: Received HTTP status code: 503: the same command goes "
        "on later"
    )
    refusing.fault = lambda method, path, before: 403
    with pytest.raises(RecoError, match=r"^gs://bucket/x: cannot be listed: Permission denied$"):
        list_files("gs://bucket/x")
    with pytest.raises(RecoError, match=r"^gs://bucket/x: cannot be written: Permission denied$"):
        storage.write_bytes("gs://bucket/x", b"data")
    refusing.fault = lambda method, path, before: None
    with pytest.raises(RecoError, match=r"^gs://nowhere/x: no such file or folder$"):
        list_files("gs://nowhere/x")


@pytest.mark.parametrize("key", [None, "no JSON", json.dumps({"type": "authorized_user"})])
def test_credentials_that_cannot_be_used_are_one_line(monkeypatch, tmp_path, key):
    """Said before anything is asked of the net."""
    file = tmp_path / "key.json"
    if key is not None:
        file.write_text(key)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(
        RecoError, match=r"^gs://bucket/x: cannot be listed: no Google credentials \(.*key\.json"
    ):
        list_files("gs://bucket/x")
