"""S3 against a real server on loopback that refuses, resets and breaks off: storage and listing as on disk."""

import pyarrow as pa
import pytest
from stores import RESET, SHORT, assert_written_is_read_back, s3_store

from reco_ray.corpus.listing import list_files
from reco_ray.errors import RecoError
from reco_ray.files import storage
from reco_ray.files.filesystems import open_file
from reco_ray.files.retries import StoreUnavailable


@pytest.fixture(scope="module")
def store():
    with s3_store("bucket") as proxy:
        yield proxy


@pytest.fixture
def s3(store):
    store.asked.clear()
    yield store
    store.fault = lambda method, path, before: None


@pytest.mark.parametrize("name", ["plain.bin", "with space.bin", "with#hash.bin", "100%.bin", "фото.bin"])
def test_what_is_written_is_read_back(s3, name):
    uri = f"s3://bucket/folder of {name}/{name}"
    assert_written_is_read_back(uri)
    assert s3.asked["PUT", next(path for method, path in s3.asked if method == "PUT")] == 2


@pytest.mark.parametrize("fault", [503, RESET, SHORT])
def test_every_request_is_made_again_when_it_may_pass(s3, fault):
    """A half body can only break off where there is one; uploads and HEAD have none."""
    storage.write_bytes("s3://bucket/again/a.jpg", b"data")
    s3.asked.clear()
    s3.fault = lambda method, path, before: (
        fault if before < 2 and (fault != SHORT or method == "GET") else None
    )
    assert storage.read_bytes("s3://bucket/again/a.jpg") == b"data"
    assert list_files("s3://bucket/again").table["uri"].to_pylist() == ["s3://bucket/again/a.jpg"]
    storage.write_table(f"s3://bucket/tables/{fault}.parquet", pa.table({"a": [1]}))
    assert storage.read_table(f"s3://bucket/tables/{fault}.parquet").to_pylist() == [{"a": 1}]
    assert s3.asked["GET", "/bucket/again/a.jpg"] >= 3


@pytest.mark.parametrize("fault", [403, 404])
def test_what_cannot_pass_is_asked_once(s3, fault):
    storage.write_bytes("s3://bucket/no.jpg", b"data")
    s3.asked.clear()
    s3.fault = lambda method, path, before: fault
    with pytest.raises(OSError, match=r".+"):
        storage.read_bytes("s3://bucket/no.jpg")
    assert set(s3.asked.values()) == {1}


def test_a_large_file_is_read_in_pieces_through_resets(s3):
    data = bytes(range(256)) * 4096
    storage.write_bytes("s3://bucket/large.bin", data)
    s3.asked.clear()
    s3.fault = lambda method, path, before: RESET if method == "GET" and before % 2 else None
    with open_file("s3://bucket/large.bin", buffer=1 << 18) as file:
        assert file.read() == data
        file.seek(1000)
        assert file.read(10) == data[1000:1010]
    assert s3.asked["GET", "/bucket/large.bin"] > 4


def test_a_store_that_goes_on_refusing_is_one_line(s3, monkeypatch):
    monkeypatch.setenv("RECO_RETRY_SECONDS", "0.5")
    s3.fault = lambda method, path, before: 503
    with pytest.raises(StoreUnavailable, match=r"^s3://bucket/a: the store does not answer: .*503"):
        storage.read_bytes("s3://bucket/a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"^s3://bucket/folder: the store does not answer"):
        list_files("s3://bucket/folder")


def test_buckets_that_refuse_or_are_not_there_are_named(s3):
    with pytest.raises(RecoError, match=r"s3://nowhere/x: no such file or folder"):
        list_files("s3://nowhere/x")
    s3.fault = lambda method, path, before: 403
    with pytest.raises(RecoError, match=r"s3://bucket/x: cannot be (listed|read): .*ACCESS_DENIED"):
        list_files("s3://bucket/x")
