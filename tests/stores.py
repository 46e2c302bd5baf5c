"""Real servers on loopback for the tests: HTTP with faults on demand, S3 (moto) and Google's storage behind it, and as
much of Hugging Face's hub as reading takes.
"""

import base64
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import HfFileSystem, close_session, constants

import reco_ray.files.filesystems as of_reco_ray
from reco_ray.files import storage

RESET, SHORT = "reset", "short"


@dataclass
class Server:
    """fault: (method, path, how often it was asked for before) -> a status, RESET, SHORT or None for none.

    asked: requests by (method, path). busy: those in work, by host; busiest: the most of them at a time; by_host: to
    one host.
    """

    url: str
    fault: Callable[[str, str, int], int | str | None] = lambda method, path, before: None
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0
    busiest: int = 0
    by_host: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
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
            host = self.headers.get("Host", "").partition(":")[0]
            with server._lock:
                before = server.asked[self.command, self.path]
                server.asked[self.command, self.path] += 1
                server.busy[host] += 1
                server.busiest = max(server.busiest, server.busy.total())
                server.by_host[host] = max(server.by_host[host], server.busy[host])
            try:
                time.sleep(server.seconds)
                self._respond(server.fault(self.command, self.path, before))
            finally:
                with server._lock:
                    server.busy[host] -= 1

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
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                if len(body) < length:
                    raise ConnectionResetError("the client is gone")
                return body
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


def assert_written_is_read_back(uri: str) -> None:
    """In a folder that is not there yet: once, and again over what is there."""
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    folder, _, name = uri.rpartition("/")
    assert storage.list_names(folder) == [name]


_GOOGLE = """
import sys
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=sys.argv[1])
server.start()
print(server._api._httpd.server_port, flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def google_store(bucket: str) -> Iterator[tuple[str, int]]:
    """An emulator of Google's storage, named by the environment; yields where it listens.

    In a process of its own: pyarrow holds Python's lock while it opens a file there.
    """
    command = [sys.executable, "-c", _GOOGLE, bucket]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as store, pytest.MonkeyPatch.context() as patch:
        try:
            port = int(store.stdout.readline())
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            patch.setenv("RECO_RETRY_SECONDS", "20")
            yield "127.0.0.1", port
        finally:
            store.kill()


@contextmanager
def hub(repository: str, files: dict[str, bytes]) -> Iterator[Server]:
    """A dataset repository (`owner/name`) as the hub's interface shows it: what it is, folders, files, and new ones.

    Commits change `files`. A name other than the repository's is refused with 403.
    """

    def answer(
        method: str, url: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        path = unquote(urlsplit(url).path)
        kept = {name.lower(): value for name, value in headers.items()}
        if re.fullmatch(rf"/api/datasets/{repository}(/revision/main)?", path):
            return _json({"id": repository, "sha": "0" * 40, "private": False, "tags": [], "siblings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            if f"{asked['organization']}/{asked['name']}" != repository or asked["visibility"] != "private":
                return 403, {}, b""
            return _json({"url": f"{server.url}/datasets/{repository}"})
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == f"/api/datasets/{repository}/preupload/main":
            asked = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in asked]
            return _json({"files": modes})
        if path == f"/api/datasets/{repository}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = {"commitUrl": f"{server.url}/datasets/{repository}/commit/1", "commitOid": "1" * 40}
            return _json(commit)
        if found := re.fullmatch(rf"/api/datasets/{repository}/tree/main/?(.*)", path):
            return _folder(files, found[1])
        found = re.fullmatch(rf"/datasets/{repository}/resolve/main/(.*)", path)
        if found and found[1] in files:
            data = files[found[1]]
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", kept.get("range", ""))
            if wanted is None:
                return 200, {}, data
            piece = data[int(wanted[1]) : int(wanted[2] or len(data)) + 1]
            return (
                206,
                {"Content-Range": f"bytes {wanted[1]}-{int(wanted[1]) + len(piece) - 1}/{len(data)}"},
                piece,
            )
        missing = "EntryNotFound" if repository in path else "RepoNotFound"
        return 404, {"X-Error-Code": missing, "X-Error-Message": "Not found"}, b""

    with serving(answer) as server, pytest.MonkeyPatch.context() as patch:
        # Other processes read the environment; this one has read it, if huggingface_hub was imported before.
        patch.setenv("HF_ENDPOINT", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}{template}")
        patch.setattr(constants, "ENDPOINT", server.url)
        _forget_hub()
        yield server
    _forget_hub()


def _forget_hub() -> None:
    """fsspec keeps its file systems, and the hub's client its connections, each with the addresses it began with."""
    of_reco_ray._hub.cache_clear()
    HfFileSystem.clear_instance_cache()
    close_session()


def _folder(files: dict[str, bytes], folder: str) -> tuple[int, dict[str, str], bytes]:
    prefix = f"{folder}/" if folder else ""
    entries, seen = [], set()
    for path, data in files.items():
        name, deeper, _ = path.removeprefix(prefix).partition("/")
        if not path.startswith(prefix) or name in seen:
            continue
        seen.add(name)
        kind = {"type": "directory", "size": 0} if deeper else {"type": "file", "size": len(data)}
        entries.append({"path": f"{prefix}{name}", "oid": "0" * 40, **kind})
    if not entries:
        return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Not found"}, b""
    return _json(entries)


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
