"""What comes from outside and means no good; and everything that the server's own OpenAPI document admits."""

import base64
import io
import json
import socket
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from images import encoded, photograph, png_header_only, png_of_zeros
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from servers import BYTES, Server, await_vocabulary

pytestmark = [pytest.mark.cpus(4), pytest.mark.timeout(600)]
PHOTO = encoded(photograph(0, 96))


@pytest.fixture(scope="module", autouse=True)
def _known(server: Server) -> Iterator[None]:
    """A vocabulary of that name; at the end all are deleted, also those that a generated request made."""
    with server.client() as client:
        client.put("/v1/vocabularies/known", json={"concepts": ["dog", "cup"]})
        assert await_vocabulary(client, "known")["status"] == "ready"
        yield
        for each in client.get("/v1/vocabularies").json()["vocabularies"]:
            assert client.delete(f"/v1/vocabularies/{each['name']}").status_code == 204


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_with(*chunks: bytes) -> bytes:
    """A small PNG with more chunks before its pixels."""
    png = encoded(photograph(1, 32), "PNG")
    return png[:33] + b"".join(chunks) + png[33:]


def _gif_of(width: int, height: int) -> bytes:
    """A GIF whose first frame lies and then ends."""
    return (
        b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff," + bytes(9) + b"\x02\0;"
    )


JPEG = "image/jpeg"
ENDLESS_TEXT = zlib.compress(b"\0" * 30_000_000)
# name -> (bytes, Content-Type, expected status)
UPLOADS: dict[str, tuple[bytes, str, int]] = {
    "empty": (b"", JPEG, 400),
    "bomb by its header": (png_header_only(50_000, 50_000), "image/png", 422),
    "bomb that inflates": (png_of_zeros(20_000, 20_000), "image/png", 422),
    "bomb in a text chunk": (_png_with(_chunk(b"zTXt", b"a\0\0" + ENDLESS_TEXT)), "image/png", 422),
    "bomb in a colour profile": (_png_with(_chunk(b"iCCP", b"a\0\0" + ENDLESS_TEXT)), "image/png", 422),
    "gif that lies": (_gif_of(60_000, 60_000), "image/gif", 422),
    "no width": (png_header_only(0, 5), "image/png", 422),
    "truncated": (PHOTO[: len(PHOTO) // 2], JPEG, 422),
    "header only": (PHOTO[:20], JPEG, 422),
    "text as jpeg": (b"hello", JPEG, 422),
    "html as jpeg": (b"<html><script>alert(1)</script></html>", JPEG, 422),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415),
    "svg as png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", 422),
    "pdf": (b"%PDF-1.7\n", "application/pdf", 415),
    "pdf as octets": (b"%PDF-1.7\n", "application/octet-stream", 422),
    "postscript as octets": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "application/octet-stream",
        422,
    ),
    "zip": (b"PK\x03\x04" + bytes(60), "application/zip", 415),
    "pickle": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x02os\x94.", "application/octet-stream", 422),
    "form of a browser": (b"a=b", "application/x-www-form-urlencoded", 400),
    "default of curl": (PHOTO, "application/x-www-form-urlencoded", 200),
    "default of S3": (PHOTO, "binary/octet-stream", 200),
    "image as svg": (PHOTO, "image/svg+xml", 200),
    "type that is none": (PHOTO, "image", 200),
    "type with a newline's code": (PHOTO, "text/plain%0d%0aX: y", 200),
    "text with a newline's code": (b"hello", "text/plain%0d%0aX: y", 415),
    "jpeg and html": (PHOTO + b"<html><script>alert(1)</script></html>", JPEG, 200),
    "zip after a jpeg": (PHOTO + b"PK\x05\x06" + bytes(18), JPEG, 200),
    "wrong but decodable type": (PHOTO, "image/tiff", 200),
    "too many bytes": (PHOTO + bytes(BYTES), JPEG, 413),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_an_upload_gets_the_code_that_it_deserves(client: httpx.Client, name: str) -> None:
    data, kind, status = UPLOADS[name]
    answer = client.post(
        "/v1/segment", params={"vocabulary": "known"}, content=data, headers={"content-type": kind}
    )
    _require(answer, status)
    if kind.startswith("image/") and status != 415 and data:
        form = client.post(
            "/v1/segment", data={"vocabulary": "known"}, files={"image": ("../../x\0.png", data, kind)}
        )
        _require(form, status)


def _require(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status
        assert "Traceback" not in answer.text
        assert "/" not in answer.json()["detail"].replace("image/", "").replace("application/", "").replace(
            "multipart/", ""
        )  # no paths of the server's


B64 = base64.b64encode(PHOTO).decode()
JSONS: dict[str, tuple[bytes, int]] = {
    "no json": (b"{", 400),
    "a list": (b"[]", 400),
    "nested deep": (b"[" * 100_000, 400),
    "endless number": (b'{"image": ' + b"9" * 5000 + b"}", 400),
    "no image": (json.dumps({"vocabulary": "known"}).encode(), 400),
    "image is a url": (json.dumps({"vocabulary": "known", "image": "http://127.0.0.1/x"}).encode(), 422),
    "image is a path": (json.dumps({"vocabulary": "known", "image": "/etc/passwd"}).encode(), 422),
    "image is a number": (json.dumps({"vocabulary": "known", "image": 1}).encode(), 422),
    "unknown option": (json.dumps({"vocabulary": "known", "image": B64, "url": "x"}).encode(), 422),
    "not a number": (b'{"vocabulary": "known", "threshold": NaN, "image": "' + B64.encode() + b'"}', 422),
    "both": (json.dumps({"vocabulary": "known", "concepts": ["cup"], "image": B64}).encode(), 422),
    "neither": (json.dumps({"image": B64}).encode(), 422),
    "too many concepts": (json.dumps({"concepts": list("abcdefghijkl"), "image": B64}).encode(), 422),
    "long concept": (json.dumps({"concepts": ["a" * 101], "image": B64}).encode(), 422),
    "concept with a nul": (json.dumps({"concepts": ["a\0"], "image": B64}).encode(), 422),
    "lone surrogate": (b'{"concepts": ["\\ud800"], "image": "' + B64.encode() + b'"}', 422),
    "name that leaves": (json.dumps({"vocabulary": "../known", "image": B64}).encode(), 404),
    "huge max_side": (json.dumps({"vocabulary": "known", "max_side": 10**9, "image": B64}).encode(), 422),
}


@pytest.mark.parametrize("name", JSONS)
def test_json_gets_the_code_that_it_deserves(client: httpx.Client, name: str) -> None:
    body, status = JSONS[name]
    answer = client.post("/v1/segment", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def _send(port: int, raw: bytes) -> bytes:
    """Bytes as they are; what comes back until the connection ends or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(raw)
        received = b""
        try:
            while chunk := connection.recv(65_536):
                received += chunk
                if b"\r\n\r\n" in received and b"chunked" not in received.partition(b"\r\n\r\n")[0]:
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return received


HEAD = b"POST /v1/segment?vocabulary=known HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
TRICKS: dict[str, tuple[bytes, bytes]] = {
    "another host": (b"GET /v1/info HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
    "no host": (b"GET /v1/info HTTP/1.1\r\n\r\n", b"4"),
    "no http": (b"hello\r\n\r\n", b"400"),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", b"400"),
    "length and chunks": (
        HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"4",
    ),
    "negative length": (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
    "length of a disk": (HEAD + b"Content-Length: 9999999999999\r\n\r\nx", b"413"),
    "compressed": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", b"415"),
    "endless chunks": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + bytes(65_536) + b"\r\n") * 30,
        b"413",
    ),
    "long header": (b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", b""),
    "other scheme": (b"GET http://evil.example/v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", TRICKS)
def test_header_tricks(server: Server, client: httpx.Client, name: str) -> None:
    raw, status = TRICKS[name]
    first = _send(server.port, raw).partition(b"\r\n")[0]
    assert (
        first.split(b" ")[1:2][0].startswith(status) if first else name in ("endless chunks", "long header")
    )
    assert not first.startswith(b"HTTP/1.1 5")
    assert client.get("/healthz").status_code == 200  # and the server lives


def test_a_body_is_waited_for_and_taken_in_pieces(server: Server) -> None:
    """`Expect: 100-continue`, as curl sends it with large bodies, and a body in chunks."""
    head = HEAD.replace(b"vocabulary=known", b"vocabulary=known&max_side=32")
    waiting = head + b"Content-Length: %d\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n" % len(PHOTO)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(waiting)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(PHOTO)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
    chunks = (
        b"".join(b"%x\r\n" % len(part) + part + b"\r\n" for part in (PHOTO[:99], PHOTO[99:])) + b"0\r\n\r\n"
    )
    answer = _send(server.port, head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_every_get_answers_head_and_paths_with_a_slash(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    concept = client.get("/v1/vocabularies/known").json()["concept_ids"][0]
    hit = client.get("/v1/search", params={"q": "dog", "k": 1}).json()["hits"][0]["image_id"]
    known = {"name": "known", "concept_id": concept, "image_id": hit, "example_id": "none", "rank": 0}
    paths = [path.format(**known) for path, operations in document["paths"].items() if "get" in operations]
    assert len(paths) >= 10
    for path in ("/", "/page/style.css", "/openapi.json", "/nothing", *paths):
        query = {"q": "dog"} if path == "/v1/search" else {}
        asked = client.get(path, params=query)
        for same in (path, path if path == "/" else path + "/"):
            head = client.head(same, params=query)
            assert (head.status_code, head.content) == (asked.status_code, b""), same
            for name in ("content-type", "content-length", "cache-control"):
                assert head.headers.get(name) == asked.headers.get(name), (same, name)
        if path != "/":
            assert client.get(path + "/", params=query).status_code == asked.status_code
    assert client.head("/v1/segment").status_code == 405
    posted = client.post("/v1/segment/", params={"vocabulary": "known"}, content=PHOTO)
    assert posted.status_code == 200, posted.text
    crossing = {"origin": "http://example.com", "access-control-request-method": "POST"}
    asked = client.options("/v1/segment", headers=crossing)  # no other web site may call
    assert (asked.status_code, "access-control-allow-origin" in asked.headers) == (405, False)


def test_a_request_id_cannot_carry_anything_into_the_log(client: httpx.Client) -> None:
    answer = client.post("/v1/segment", headers={"x-request-id": 'x"} <script>'})
    assert answer.json()["request_id"] == "xscript"


def test_an_svg_in_a_form_and_other_fields_are_refused(client: httpx.Client) -> None:
    def post(*parts: tuple[str, Any]) -> int:
        return client.post("/v1/segment", data={"vocabulary": "known"}, files=list(parts)).status_code

    image = ("image", ("a.jpg", PHOTO, JPEG))
    assert post(image) == 200
    assert post(("file", image[1])) == 200
    assert post(image, image) == 422
    assert post(image, ("other", ("a.jpg", PHOTO, JPEG))) == 422
    assert post(("image", ("a.svg", b"<svg/>", "image/svg+xml"))) == 415
    assert post(*[("other", (None, "x"))] * 40) in (400, 422)
    broken = client.post("/v1/segment", content=b"x", headers={"content-type": "multipart/form-data"})
    assert broken.status_code == 400


def test_a_picture_may_be_stretched_but_not_without_end(client: httpx.Client) -> None:
    long = io.BytesIO()
    photograph(2, 96).resize((20_000, 2)).save(long, "PNG")
    answer = client.post("/v1/segment", params={"vocabulary": "known"}, content=long.getvalue())
    assert answer.status_code == 200
    assert answer.json()["width"] == 1024


def test_the_calls_of_the_guide_work(server: Server, tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    # The calls of later blocks use what earlier ones made.
    script = "".join(part.partition("```")[0] for part in guide.split("```bash\n")[1:])
    script = script.replace("http://127.0.0.1:8000", server.url).replace(
        "curl -s", "curl -sS --fail-with-body"
    )
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    command = ["bash", "-euc", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    with Image.open(tmp_path / "mask.png") as mask, Image.open(tmp_path / "overlay.jpg") as overlay:
        assert (mask.mode, overlay.format) == ("P", "JPEG")


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_interface_keeps_what_its_document_promises(server: Server, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations()]
    assert len(operations) >= 13
    for operation in operations:
        has_input = operation.path_parameters or operation.query or operation.body
        if has_input or mode is GenerationMode.POSITIVE:  # nothing can be wrong with no input
            _keeps_its_promises(operation.as_strategy(generation_mode=mode))


def _keeps_its_promises(cases: Any) -> None:
    # What a schema cannot say: that bytes are an image, that either a vocabulary or concepts are named.
    beyond = [positive_data_acceptance]

    @settings(
        max_examples=6,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=cases)
    def ask(case: Any) -> None:
        answer = case.call(timeout=60)
        if answer.status_code == 503:  # documented: busy or building
            assert "retry-after" in {name.lower() for name in answer.headers}
            case.validate_response(answer, excluded_checks=[*beyond, not_a_server_error])
        elif answer.status_code == 413:  # rejected before it is read; the check does not know the code
            case.validate_response(answer, excluded_checks=[*beyond, negative_data_rejection])
        else:
            case.validate_response(answer, excluded_checks=beyond)

    ask()
