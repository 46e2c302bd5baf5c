"""Proxies that the environment names, for everything that leaves this machine; real sockets on loopback."""

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest
from stores import google_store, hub, s3_store, serving

from reco_ray.client import Client, ServiceError
from reco_ray.corpus import web
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.read import read_image_bytes
from reco_ray.files import storage
from reco_ray.files.proxies import proxy_for, proxy_of
from reco_ray.files.retries import StoreUnavailable
from reco_ray.models import weights

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Proxy(ThreadingHTTPServer):
    """Forwards GET and HEAD with an absolute address, and tunnels CONNECT; `asked` are the addresses.

    Every host is loopback to it, so that hosts which exist nowhere can be asked for. password: "name:password" that it
    asks for. refusal: a status that it answers with instead.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Forward)
        self.asked: list[str] = []
        self.password = ""
        self.refusal = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *words: object) -> None: ...

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.refused():
            return
        port = urlsplit(self.path).port or 80
        upstream = socket.create_connection(("127.0.0.1", port))
        with upstream:
            path = "/" + self.path.split("/", 3)[3]
            lines = [f"{self.command} {path} HTTP/1.0"]
            lines += [
                f"{k}: {v}"
                for k, v in self.headers.items()
                if k.lower() not in ("connection", "proxy-authorization")
            ]
            length = int(self.headers.get("Content-Length") or 0)
            upstream.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
            upstream.sendall(self.rfile.read(length))
            while piece := upstream.recv(1 << 16):
                self.wfile.write(piece)
        self.close_connection = True

    do_HEAD = do_POST = do_GET

    def do_CONNECT(self) -> None:
        self.server.asked.append(self.path)
        if not self.refused():
            self.send_error(502)

    def refused(self) -> bool:
        expected = "Basic " + base64.b64encode(self.server.password.encode()).decode()
        if self.server.password and self.headers.get("Proxy-Authorization") != expected:
            self.send_error(407)
        elif self.server.refusal:
            self.send_error(self.server.refusal)
        else:
            return False
        return True


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    web._pool.cache_clear()
    yield
    web._pool.cache_clear()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with running() as started:
        yield started


@contextlib.contextmanager
def running() -> Iterator[Proxy]:
    started = Proxy()
    threading.Thread(target=started.serve_forever, daemon=True).start()
    try:
        yield started
    finally:
        started.shutdown()
        started.server_close()


@pytest.fixture
def host() -> Iterator[str]:
    """A host that only the proxy knows, with a port on which a server of photographs listens."""
    with serving(lambda method, path, headers, body: (200, {}, path[1:].encode())) as server:
        yield f"http://photos.invalid:{server.url.rpartition(':')[2]}"


@pytest.fixture
def dead() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("form", ["http://{}", "{}"])
def test_images_are_fetched_through_the_proxy(
    proxy: Proxy, host: str, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    monkeypatch.setenv(name, form.format(proxy.address))
    assert read_image_bytes(f"{host}/a.jpg?b=c") == b"a.jpg?b=c"
    assert proxy.asked == [f"{host}/a.jpg?b=c"]


def test_lists_at_addresses_are_read_through_the_proxy(
    proxy: Proxy, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    assert list_files(f"{host}/list.txt").table["uri"].to_pylist() == [f"{host}/list.txt"]
    assert set(proxy.asked) == {f"{host}/list.txt"}


@pytest.mark.parametrize(
    ("exception", "direct"),
    [
        ("127.0.0.1", True),
        ("127.0.0.0/8", True),
        ("*", True),
        ("localhost, 127.0.0.1", True),
        ("10.0.0.0/8,example.org", False),
        ("", False),
    ],
)
def test_no_proxy_names_what_is_asked_directly(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, exception: str, direct: bool
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    monkeypatch.setenv("no_proxy", exception)
    with serving(lambda method, path, headers, body: (200, {}, b"x")) as server:
        assert read_image_bytes(f"{server.url}/a.jpg") == b"x"
    assert (proxy.asked == []) is direct


def test_no_proxy_takes_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", ".example.org,intra.net,10.0.0.0/8")
    direct = ["https://a.example.org/x", "https://b.intra.net", "https://intra.net", "https://10.1.2.3/x"]
    assert [proxy_for(url) for url in direct] == [None] * 4
    assert str(proxy_for("https://example.com")) == "http://proxy:3128 (HTTPS_PROXY)"
    assert proxy_for("http://example.com") is None


def test_redirects_ask_the_proxy_of_where_they_lead(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def answer(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        there = f"http://photos.invalid:{server.url.rpartition(':')[2]}/b.jpg"
        return (302, {"Location": there}, b"") if path == "/a.jpg" else (200, {}, b"b")

    with serving(answer) as server:
        assert read_image_bytes(f"{server.url}/a.jpg") == b"b"
    assert [urlsplit(url).path for url in proxy.asked] == ["/b.jpg"]


def test_credentials_go_to_the_proxy_and_into_no_message(
    proxy: Proxy, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.password = "ann:p@ss word"
    monkeypatch.setenv("http_proxy", f"http://ann:p%40ss%20word@{proxy.address}")
    assert read_image_bytes(f"{host}/a.jpg") == b"a.jpg"
    proxy.password = "other:one"
    with pytest.raises(StoreUnavailable, match=r"asks for a name and a password.*http_proxy=") as caught:
        read_image_bytes(f"{host}/a.jpg")
    assert "p%40ss" not in str(caught.value)
    monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
    with pytest.raises(StoreUnavailable, match="asks for a name and a password"):
        read_image_bytes("https://photos.invalid/a.jpg")


def test_a_dead_proxy_ends_the_run_and_is_named(
    host: str, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECO_RETRY_SECONDS", "0.1")
    monkeypatch.setenv("HTTP_PROXY", f"http://{dead}")
    line = rf"http://{dead} \(HTTP_PROXY\): the proxy does not answer: .*Connection refused.*goes on later"
    with pytest.raises(StoreUnavailable, match=line):
        read_image_bytes(f"{host}/a.jpg")
    with pytest.raises(StoreUnavailable, match=rf"through the proxy http://{dead} \(HTTP_PROXY\)"):
        list_files(f"{host}/list.txt")


def test_a_host_that_the_proxy_refuses_is_one_image(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.refusal = 403
    monkeypatch.setenv("all_proxy", f"http://{proxy.address}")
    with pytest.raises(OSError, match="the proxy refuses: Tunnel connection failed: 403"):
        read_image_bytes("https://photos.invalid/a.jpg")
    with pytest.raises(OSError, match="HTTP status 403"):
        read_image_bytes("http://photos.invalid/a.jpg")


@pytest.mark.filterwarnings("ignore:SOCKS support")
@pytest.mark.skipif(find_spec("socks") is not None, reason="PySocks is installed")
def test_socks_without_its_package_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"socks5h://127.0.0.1:9 \(all_proxy\).*pip install pysocks"):
        read_image_bytes("http://photos.invalid/a.jpg")


# --- stores -------------------------------------------------------------------------------------------------


def test_s3_is_asked_through_the_proxy(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_store("bucket") as store:
        storage.write_bytes("s3://bucket/a.bin", b"one")
        port = store.url.rpartition(":")[2]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{port}")
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        assert storage.read_bytes("s3://bucket/a.bin") == b"one"
    assert any(url.startswith(f"http://localhost:{port}/bucket") for url in proxy.asked)


def test_the_region_of_a_bucket_is_asked_for_through_the_proxy(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RECO_RETRY_SECONDS", "0.1")
    monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
    with pytest.raises(Exception, match=r"502"):
        storage.read_bytes("s3://bucket-of-nobody/a.bin")
    assert set(proxy.asked) == {"bucket-of-nobody.s3.amazonaws.com:443"}


def test_google_is_asked_through_the_proxy(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with google_store("bucket"):
        storage.write_bytes("gs://bucket/a.bin", b"one")
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        assert storage.read_bytes("gs://bucket/a.bin") == b"one"
    assert proxy.asked


def test_the_hub_is_asked_through_the_proxy(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub("ann/photos", {"a.jpg": b"one"}):
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        assert storage.read_bytes("hf://datasets/ann/photos/a.jpg") == b"one"
    assert proxy.asked


@pytest.mark.parametrize(
    ("uri", "proxied"),
    [
        ("s3://bucket/a", True),
        ("gs://bucket/a", True),
        ("hf://datasets/a/b", True),
        ("https://example.org/a", True),
        ("http://example.org/a", False),
        ("/photos/a.jpg", False),
    ],
)
def test_stores_have_the_proxy_of_https(monkeypatch: pytest.MonkeyPatch, uri: str, proxied: bool) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert (proxy_of(uri) is not None) is proxied


def test_weights_look_for_the_hub_themselves_where_no_proxy_leads_there(
    proxy: Proxy, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.hub_constants, "ENDPOINT", f"http://{dead}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # names no proxy
    assert not weights._hub_is_reachable()
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    assert weights._hub_is_reachable()  # only the proxy can tell


# --- the client ---------------------------------------------------------------------------------------------


def test_the_client_names_a_dead_proxy(dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://ann:secret@{dead}")
    line = rf"the proxy http://{dead} \(http_proxy\) fails: Connection refused: .*no_proxy=service.invalid"
    with Client("http://service.invalid") as client, pytest.raises(ServiceError, match=line) as caught:
        client.info()
    assert "secret" not in str(caught.value)


def test_what_the_client_says_to_do_works(dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{dead}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with (
        serving(lambda method, path, headers, body: (200, {}, b'{"version": "1"}')) as server,
        Client(server.url) as client,
    ):
        assert client.info() == {"version": "1"}


def test_the_client_says_what_a_proxy_refuses(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.refusal = 403
    monkeypatch.setenv("all_proxy", f"http://{proxy.address}")
    with (
        Client("https://service.invalid") as client,
        pytest.raises(ServiceError, match=r"the proxy .*\(all_proxy\) fails: it answers 403"),
    ):
        client.info()
    with (
        Client("http://service.invalid") as client,
        pytest.raises(ServiceError, match=r"HTTP status 403, of .* or of the proxy"),
    ):
        client.info()
