"""Images behind http addresses: retries, limits, and what is refused; against a real server."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from stores import RESET, SHORT, serving

from reco_ray.corpus import web
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.read import read_image_bytes

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


def test_a_host_that_is_not_there():
    with pytest.raises(OSError, match=r".+"):
        read_image_bytes("http://127.0.0.1:9/a.jpg")


def test_lists_may_hold_addresses(tmp_path):
    (tmp_path / "urls.txt").write_text("https://example.org/a.jpg\nhttp://example.org/b?id=3\nlocal.jpg\n")
    listed = list_files(str(tmp_path / "urls.txt")).table["uri"].to_pylist()
    assert listed == ["https://example.org/a.jpg", "http://example.org/b?id=3", str(tmp_path / "local.jpg")]
