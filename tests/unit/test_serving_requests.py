"""Requests as the usual clients write them: every form of an image and of concepts is read alike."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from images import encoded, photograph
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from reco_ray.serving.base64_images import image_bytes
from reco_ray.serving.middleware import answer_head, strip_slash
from reco_ray.serving.options import Limits
from reco_ray.serving.problems import Problem, problem_response
from reco_ray.serving.uploads import read_request

PHOTO = encoded(photograph(0, 96))
B64 = base64.b64encode(PHOTO).decode()
LINES = base64.encodebytes(PHOTO).decode()
URL_SAFE = base64.urlsafe_b64encode(PHOTO).decode().rstrip("=")
LIMITS = Limits(bytes=1_000_000, concepts=20, batch=4)
FORM = "application/x-www-form-urlencoded"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what was read: whether each image is the photograph, and the options."""
    request = Request(scope, receive)
    response: Response
    try:
        batch = scope["path"] == "/batch"
        uploads, options = await read_request(request, LIMITS, batch=batch)
        found = [
            upload.data.status if isinstance(upload.data, Problem) else upload.data == PHOTO
            for upload in uploads
        ]
        response = JSONResponse({"images": found, **options.model_dump(exclude_none=True)})
    except Problem as problem:
        response = problem_response(problem, "id")
    await response(scope, receive, send)


def send(method: str = "POST", path: str = "/", app: Any = application, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as session:
            return await session.request(method, path, **options)

    return asyncio.run(run())


def read(path: str = "/?concepts=cat", **options: Any) -> Any:
    answer = send("POST", path, **options)
    return answer.json() if answer.status_code == 200 else (answer.status_code, answer.json()["detail"])


CAT = {"images": [True], "concepts": ["cat"]}


@pytest.mark.parametrize(
    "text",
    [
        B64,
        LINES,
        LINES.replace("\n", "\r\n"),
        "  " + B64 + "\n",
        B64.rstrip("="),
        URL_SAFE,
        f"data:image/jpeg;base64,{B64}",
        f"DATA:image/jpeg;charset=utf-8;BASE64,{LINES}",
        f"data:;base64,{URL_SAFE}",
        f"data:image/png; base64 ,{quote(B64, safe='')}",
        f"data:image/jpeg,{quote(PHOTO)}",
        f"data:image/svg+xml;base64,{B64}",  # a wrong type with an image's bytes
    ],
)
def test_base64_and_data_urls_of_every_kind_are_the_image(text: str) -> None:
    assert image_bytes(text) == PHOTO
    assert read(json={"image": text}) == CAT
    assert read(files={"image": (None, text)}) == CAT
    assert read(data={"image": text}) == CAT
    assert read("/batch?concepts=cat", json={"images": [text, {"image": text}]})["images"] == [True, True]


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("", 422, "data URL"),
        (7, 422, "data URL"),
        (None, 422, "data URL"),
        ("%", 422, "not valid base64"),
        ("A", 422, "not valid base64"),
        ("AAAA=AAAA", 422, "not valid base64"),
        ("data:image/png;base64", 422, "not valid base64"),
        ("data:image/png;base64,", 422, "empty"),
        ("data:,", 422, "empty"),
        ("https://example.com/a.jpg", 422, "no https address is fetched"),
        ("data:image/svg+xml,%3Csvg/%3E", 415, "SVG"),
    ],
)
def test_text_that_is_no_image_says_why(text: Any, status: int, said: str) -> None:
    problem = image_bytes(text)
    assert isinstance(problem, Problem)
    assert problem.status == status
    assert said in problem.detail


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "image/jpeg",
        "IMAGE/JPEG; q=1",
        "image/tiff",
        "image/svg+xml",
        "application/octet-stream",
        "binary/octet-stream",
        "Binary/Octet-Stream; charset=binary",
        FORM,  # what curl --data-binary says
        "text/plain",
        "text/plain; charset=UTF-8",
        "application/json",
        "application/pdf",
        "multipart/form-data",
        "nonsense",
    ],
)
def test_the_bytes_of_an_image_are_one_whatever_their_type(kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert read(content=PHOTO, headers=headers) == CAT
    if kind is not None:
        assert read(files={"image": ("x", PHOTO, kind)}) == CAT
    batch = send("POST", "/batch?concepts=cat", content=PHOTO, headers=headers)
    assert batch.status_code in (400, 415)


def test_a_body_in_chunks_is_the_same() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(PHOTO), 500):
            yield PHOTO[start : start + 500]

    assert read(content=chunks()) == CAT


@pytest.mark.parametrize("kind", [None, FORM, "text/plain", "APPLICATION/JSON; charset=utf-8", "a/b+json"])
def test_json_is_read_under_the_types_that_clients_send_by_default(kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    body = json.dumps({"image": B64, "concepts": ["cat"]}).encode()
    assert read("/", content=body, headers=headers) == CAT
    assert read("/", content=b"\xef\xbb\xbf" + body, headers={"content-type": "application/json"}) == CAT


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/pdf", b"%PDF-1.7", 415),
        ("image/svg+xml", b"<svg/>", 415),
        ("text/html", b"<html>", 415),
        ("multipart/form-data", b"x", 400),
        (FORM, b"a=b", 400),
        (FORM, b"&".join(b"concepts=a" for _ in range(100)), 400),
        ("application/json", b"<xml>", 400),
        ("application/json", b'{"image": "a", "image": "b"}', 400),
        ("image/jpeg", b"", 400),
        (None, b"", 400),
    ],
)
def test_what_is_no_image_keeps_its_code(kind: str | None, body: bytes, status: int) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert send("POST", "/?vocabulary=v", content=body, headers=headers).status_code == status


@pytest.mark.parametrize("field", ["image", "file", "files", "images", "file[]", "files[]", "images[0]"])
def test_the_usual_names_of_a_file_field_are_taken(field: str) -> None:
    assert read(files={field: ("a.jpg", PHOTO, "image/jpeg")}) == CAT
    files = [(field, ("a.jpg", PHOTO)), (field, ("b.jpg", PHOTO))]
    assert read("/batch?concepts=cat", files=files) == {"images": [True, True], "concepts": ["cat"]}
    assert read(files=files)[0] == 422


def test_bytes_that_were_sent_as_a_text_field_are_the_image() -> None:
    assert read(files={"image": (None, PHOTO)}) == CAT
    body = urlencode({"image": PHOTO})
    assert read(content=body, headers={"content-type": FORM}) == CAT
    plain = f"image={B64}&concepts=cat".encode()  # nobody escaped its +
    assert "+" in B64
    assert read("/", content=plain, headers={"content-type": FORM}) == CAT


CONCEPTS = ["cat", "lap dog", "\u00e9l\u00e9phant"]
JOINED = ", ".join(CONCEPTS)
SPELLED = [
    [("concepts", name) for name in CONCEPTS],
    [("concepts[]", name) for name in CONCEPTS],
    [(f"concepts[{number}]", name) for number, name in enumerate(CONCEPTS)],
    [("concepts", JOINED)],
    [("concepts", "\r\n".join(CONCEPTS))],
    [("concepts", json.dumps(CONCEPTS))],
    [("concepts", json.dumps(CONCEPTS, ensure_ascii=False))],
    [("concepts", JOINED.rpartition(",")[0]), ("concepts", CONCEPTS[-1])],
    [("concepts[]", JOINED), ("concepts", "")],
]


@pytest.mark.parametrize("pairs", SPELLED)
def test_concepts_are_a_list_however_a_client_sends_one(pairs: list[tuple[str, str]]) -> None:
    def names(found: Any) -> list[str]:
        assert found["images"] == [True], found
        return [name.strip() for name in found["concepts"]]

    octets = {"content-type": "application/octet-stream"}
    form = {"content-type": FORM}
    assert names(read(f"/?{urlencode(pairs)}", content=PHOTO, headers=octets)) == CONCEPTS
    assert names(read("/", content=urlencode([*pairs, ("image", B64)]), headers=form)) == CONCEPTS
    parts: list[Any] = [(name, (None, value)) for name, value in pairs]
    image = ("image", ("a.jpg", PHOTO, "image/jpeg"))
    assert names(read("/", files=[*parts, image])) == CONCEPTS
    assert names(read("/", files=[image, *parts])) == CONCEPTS  # the order of the fields says nothing


@pytest.mark.parametrize("value", [CONCEPTS, JOINED, json.dumps(CONCEPTS)])
@pytest.mark.parametrize("name", ["concepts", "concepts[]"])
def test_concepts_in_json(name: str, value: Any) -> None:
    found = read("/", json={"image": B64, name: value})
    assert [each.strip() for each in found["concepts"]] == CONCEPTS


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/?concepts=cat", {"concepts": "dog"}),  # one place or the other
        ("/?vocabulary=a&vocabulary=b", {}),
        ("/?vocabulary[]=a", {}),
        ("/?concepts=,", {}),
        ("/?concepts[x]=cat", {}),
        ("/", {"concepts": "[1, 2]"}),
        ("/?threshold=0.1&threshold=0.2&concepts=cat", {}),
    ],
)
def test_what_cannot_be_meant_is_refused(path: str, fields: dict[str, str]) -> None:
    files = {"image": ("a.jpg", PHOTO, "image/jpeg")}
    assert send("POST", path, data=fields, files=files).status_code == 422


def test_a_json_value_that_is_no_list_of_names_is_refused() -> None:
    for own in ({"concepts": 5}, {"concepts": 5, "concepts[]": ["cat"]}, {"concepts": {"a": 1}}):
        assert read("/", json={"image": B64, **own})[0] == 422


@pytest.mark.parametrize(
    ("path", "root", "seen"),
    [
        ("/", "", "/"),
        ("/v1/info", "", "/v1/info"),
        ("/v1/info/", "", "/v1/info"),
        ("/v1/info//", "", "/v1/info"),
        ("/reco/", "/reco", "/reco/"),
        ("/reco/healthz/", "/reco", "/reco/healthz"),
        ("/v1/vocabularies/a%2F", "", "/v1/vocabularies/a"),
    ],
)
def test_a_trailing_slash_is_taken_off(path: str, root: str, seen: str) -> None:
    async def told(scope: Any, receive: Any, send: Any) -> None:
        body = await Request(scope, receive).body()
        await JSONResponse([scope["path"], len(body)])(scope, receive, send)

    async def below(scope: Any, receive: Any, send: Any) -> None:
        await strip_slash(told)({**scope, "root_path": root}, receive, send)

    assert send("POST", path, below, content=b"body").json() == [seen, 4]


def test_head_is_get_without_the_body() -> None:
    async def told(scope: Any, receive: Any, send: Any) -> None:
        await Response(scope["method"], headers={"x-a": "b"})(scope, receive, send)

    get, head = (send(method, "/", answer_head(told)) for method in ("GET", "HEAD"))
    assert (get.text, head.text) == ("GET", "")
    assert dict(head.headers) == dict(get.headers)
    assert send("OPTIONS", "/", answer_head(told)).text == "OPTIONS"
