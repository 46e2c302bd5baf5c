"""hf://, read by huggingface_hub's own file system from a server that answers as much as reading takes."""

import pytest
from images import encoded, photograph
from stores import SHORT, hub

from reco_ray.corpus.listing import list_files
from reco_ray.corpus.read import read_image_bytes
from reco_ray.errors import RecoError
from reco_ray.files import filesystems as stores
from reco_ray.files import storage
from reco_ray.files.retries import StoreUnavailable

ROOT = "hf://datasets/someone/photos"
FILES = {
    "train/a b.jpg": encoded(photograph(0)),
    "train/100%.jpg": encoded(photograph(1)),
    "train/deep/фото #1.jpg": encoded(photograph(2)),
    "README.md": b"photographs",
    "large.bin": bytes(range(256)) * 4096,
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("RECO_RETRY_SECONDS", "0.5")
    with hub("someone/photos", FILES) as server:
        yield server


def test_files_are_listed_and_read(server):
    table = list_files(ROOT).table
    images = {f"{ROOT}/{name}": data for name, data in FILES.items() if name.endswith(".jpg")}
    assert dict(zip(table["uri"].to_pylist(), table["size"].to_pylist(), strict=True)) == {
        uri: len(data) for uri, data in images.items()
    }
    assert {uri: read_image_bytes(uri) for uri in images} == images
    assert list_files(f"{ROOT}/train/*.jpg").table.num_rows == 2
    assert max(asked for (_, path), asked in server.asked.items() if "/resolve/" in path) == 1


def test_a_listing_shows_what_came_since(server, monkeypatch):
    assert list_files(f"{ROOT}/train").table.num_rows == 3
    monkeypatch.setitem(FILES, "train/new.jpg", b"new")
    assert list_files(f"{ROOT}/train").table.num_rows == 4
    assert storage.read_bytes(f"{ROOT}/train/new.jpg") == b"new"


def test_a_large_file_is_read_at_any_place(server):
    with stores.open_file(f"{ROOT}/large.bin", buffer=1 << 16) as file:
        file.seek(1000)
        assert file.read(10) == FILES["large.bin"][1000:1010]
        file.seek(0)
        assert file.read() == FILES["large.bin"]


@pytest.mark.parametrize("fault", [503, SHORT])
def test_what_the_hub_refuses_for_now_is_not_missing(server, fault):
    """fsspec would call a file that is refused "not there", and a folder empty."""
    server.fault = lambda method, path, before: fault if "/api/" in path else None
    for ask in (lambda: list_files(ROOT), lambda: read_image_bytes(f"{ROOT}/train/a b.jpg")):
        with pytest.raises(
            StoreUnavailable, match=rf"^{ROOT}.*: the store does not answer: .*goes on later$"
        ):
            ask()


def test_what_cannot_be_had_is_one_line(server):
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_image_bytes(f"{ROOT}/train/none.jpg")
    for name in ("hf://datasets/someone/else", f"{ROOT}/nowhere"):
        with pytest.raises(
            RecoError, match=rf"^{name}: no such file or folder, or a private one and no HF_TOKEN$"
        ):
            list_files(name)
    with pytest.raises(RecoError, match=r"^hf://gpt2: cannot be listed: .*namespace/name"):
        list_files("hf://gpt2")
    with pytest.raises(RecoError, match=rf"^{ROOT}/out: cannot be written: hf:// is only read"):
        storage.write_bytes(f"{ROOT}/out", b"data")
    stores._hub.cache_clear()
    server.fault = lambda method, path, before: 403
    with pytest.raises(
        RecoError, match=rf"^{ROOT}: cannot be listed: HTTP status 403, the credentials do not"
    ):
        list_files(ROOT)
