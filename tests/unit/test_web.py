"""Images behind http addresses: retries, limits, and what is refused; against a real server."""

import re
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import write_photographs
from stores import RESET, SHORT, serving

from reco_ray.corpus import web
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.read import read_image_bytes, read_members
from reco_ray.files.retries import StoreUnavailable

BODY = b"x" * 1000


def answer(method, path, headers, body):
    if path.startswith("/to/"):
        return 302, {"Location": path.removeprefix("/to/").replace("_", ":", 1)}, b""
    if path == "/loop":
        return 302, {"Location": "/loop"}, b""
    return (404, {}, b"") if path == "/missing" else (200, {}, BODY)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(web, "_RETRIES", web._RETRIES.new(backoff_factor=0.01, backoff_jitter=0))
    web._pool.cache_clear()
    with serving(answer) as server:
        yield server
    web._pool.cache_clear()


@pytest.mark.parametrize("fault", [500, 503, 429, RESET, SHORT])
def test_what_may_pass_is_tried_again(server, fault):
    server.fault = lambda method, path, before: fault if before < 2 else None
    assert read_image_bytes(f"{server.url}/a.jpg") == BODY
    assert server.asked["GET", "/a.jpg"] == 3


@pytest.mark.parametrize(("fault", "message"), [(503, "HTTP status 503"), (RESET, ".+")])
def test_what_does_not_pass_is_an_error_in_one_line(server, fault, message):
    server.fault = lambda method, path, before: fault
    with pytest.raises(OSError, match=message) as caught:
        read_image_bytes(f"{server.url}/a.jpg")
    assert "object at 0x" not in str(caught.value)
    assert server.asked["GET", "/a.jpg"] <= 12


def test_what_is_gone_is_asked_for_once(server):
    with pytest.raises(OSError, match="HTTP status 404"):
        read_image_bytes(f"{server.url}/missing")
    assert server.asked["GET", "/missing"] == 1


def test_large_bodies_are_refused(server):
    with pytest.raises(OSError, match=r"too large: 1,000 bytes, the limit is 999"):
        web.fetch(f"{server.url}/a.jpg", 999)


@pytest.mark.parametrize("target", ["file_///etc/passwd", "ftp_//127.0.0.1/x", "s3_//bucket/x"])
def test_redirects_lead_to_no_other_scheme(server, target):
    with pytest.raises(OSError, match=r".+"):
        read_image_bytes(f"{server.url}/to/{target}")


def test_redirects_end(server):
    assert read_image_bytes(f"{server.url}/to//a.jpg") == BODY
    with pytest.raises(OSError, match="redirect"):
        read_image_bytes(f"{server.url}/loop")
    assert server.asked["GET", "/loop"] <= 6


def test_a_host_gets_no_more_requests_at_a_time_than_its_limit(server):
    server.seconds = 0.02
    web.limit_per_host(3)
    try:
        with ThreadPoolExecutor(16) as threads:
            urls = [f"{server.url}/{number}.jpg" for number in range(40)]
            assert list(threads.map(read_image_bytes, urls)) == [BODY] * 40
    finally:
        web.limit_per_host(web.PER_HOST_LIMIT)
    assert server.busiest == 3


def test_redirects_count_for_the_host_that_they_lead_to(server):
    server.seconds = 0.1  # long enough for requests to meet, however slow the machine is
    there = server.url.replace("127.0.0.1", "localhost")
    direct = [f"{there}/{number}.jpg" for number in range(10)]
    led = [f"{server.url}/to/{url.replace(':', '_', 1)}" for url in direct]
    web.limit_per_host(2)
    try:
        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(read_image_bytes, [*direct, *led])) == [BODY] * 20
    finally:
        web.limit_per_host(web.PER_HOST_LIMIT)
    assert server.by_host == {"127.0.0.1": 2, "localhost": 2}


def test_the_loaders_share_a_host_without_a_rest():
    for room in range(40):
        loaders, requests = web.shares(room)
        assert loaders * requests == web.PER_HOST_LIMIT
        assert loaders <= max(1, room)


def test_a_host_that_is_not_there():
    with pytest.raises(OSError, match=r".+"):
        read_image_bytes("http://127.0.0.1:9/a.jpg")


def test_lists_may_hold_addresses(tmp_path):
    (tmp_path / "urls.txt").write_text("https://example.org/a.jpg\nhttp://example.org/b?id=3\nlocal.jpg\n")
    listed = list_files(str(tmp_path / "urls.txt")).table["uri"].to_pylist()
    assert listed == ["https://example.org/a.jpg", "http://example.org/b?id=3", str(tmp_path / "local.jpg")]


def test_lists_may_lie_at_addresses():
    with serving(
        lambda method, path, headers, body: (200, {}, b"a.jpg\nhttp://example.org/b.jpg\n")
    ) as server:
        listed = list_files(f"{server.url}/photos/list.txt").table["uri"].to_pylist()
    assert listed == [f"{server.url}/photos/a.jpg", "http://example.org/b.jpg"]


def test_tars_and_tables_at_addresses_are_read_by_range(tmp_path, monkeypatch):
    """Each member again by its own address; what the host refuses for now stops the run, and is not rejected."""
    photographs = [file.read_bytes() for file in write_photographs(tmp_path, 3)]
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for number in range(3):
            tar.add(tmp_path / f"{number:03d}.jpg", f"{number}.jpg")
    pq.write_table(pa.table({"bytes": photographs}), tmp_path / "t.parquet")

    def ranges(method, path, headers, body):
        data = (tmp_path / path[1:]).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
        if wanted is None:
            return 200, {"Accept-Ranges": "bytes", "Content-Length": str(len(data))}, data
        piece = data[int(wanted[1]) : int(wanted[2]) + 1]
        place = f"bytes {wanted[1]}-{int(wanted[1]) + len(piece) - 1}/{len(data)}"
        return 206, {"Content-Range": place}, piece

    monkeypatch.setenv("RECO_RETRY_SECONDS", "0.5")
    with serving(ranges) as server:
        for name in ("t.tar", "t.parquet"):
            found = list(read_members(f"{server.url}/{name}", -1, 1.0))
            assert [data for _, data in found] == photographs
            assert [read_image_bytes(uri) for uri, _ in found] == photographs
        server.fault = lambda method, path, before: 503
        with pytest.raises(StoreUnavailable, match=r"t\.tar: the store does not answer: HTTP status 503"):
            list(read_members(f"{server.url}/t.tar", -1, 1.0))
