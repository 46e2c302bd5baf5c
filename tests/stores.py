"""Real servers on loopback for the tests: HTTP with faults on demand, and S3 (moto) behind a proxy with faults."""

import http.client
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

RESET, SHORT = "reset", "short"


@dataclass
class Server:
    """fault: (method, path, how often it was asked for before) -> a status, RESET, SHORT or None for none.

    asked: requests by (method, path). busiest: the most requests that were in work at a time.
    """

    url: str
    fault: Callable[[str, str, int], int | str | None] = lambda method, path, before: None
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0
    busiest: int = 0
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(
    answer: Callable[[str, str, dict[str, str], bytes], tuple[int, dict[str, str], bytes]],
) -> Iterator[Server]:
    """Serves `answer(method, path, headers, body) -> (status, headers, body)` with the faults that are asked for."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None: ...

        def handle_any(self) -> None:
            with server._lock:
                before = server.asked[self.command, self.path]
                server.asked[self.command, self.path] += 1
                server._busy += 1
                server.busiest = max(server.busiest, server._busy)
            try:
                time.sleep(server.seconds)
                self._respond(server.fault(self.command, self.path, before))
            finally:
                with server._lock:
                    server._busy -= 1

        def _respond(self, fault: int | str | None) -> None:
            body = self._body()
            if fault == RESET:
                self._hang_up()
                return
            if isinstance(fault, int):
                status, headers, content = fault, {}, b""
            else:
                status, headers, content = answer(self.command, self.path, dict(self.headers), body)
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in (
                    "connection",
                    "transfer-encoding",
                    "content-length",
                    "server",
                    "date",
                ):
                    self.send_header(name, value)
            known = next((v for k, v in headers.items() if k.lower() == "content-length"), len(content))
            self.send_header("Content-Length", str(known if self.command == "HEAD" else len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if fault == SHORT else content)
            if fault == SHORT:
                self._hang_up()

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server = Server(f"http://127.0.0.1:{httpd.server_port}")
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()


def proxy_to(
    host: str, port: int
) -> Callable[[str, str, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]:
    """An `answer` that asks another server; its signature stays valid, as the Host header goes along."""

    def answer(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        try:
            dropped = ("connection", "transfer-encoding", "content-length", "expect")
            kept = {name: value for name, value in headers.items() if name.lower() not in dropped}
            connection.request(method, path, body or None, kept)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    return answer


@contextmanager
def s3_store(bucket: str) -> Iterator[Server]:
    """moto's S3 server behind a proxy with faults, named by the environment, which Ray started later inherits."""
    import boto3
    from moto.server import ThreadedMotoServer

    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    with serving(proxy_to(*store.get_host_and_port())) as proxy, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("RECO_RETRY_SECONDS", "20")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
        try:
            yield proxy
        finally:
            store.stop()
