"""The middlewares: who may pass, how much, what every answer carries. Requests come through httpx, in this process."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from reco_ray.serving.access import limit_rate, refuse_when_draining, require_key, require_loopback
from reco_ray.serving.keys import KeyRing, new_key
from reco_ray.serving.middleware import Check, add_middlewares
from reco_ray.serving.options import Limits
from reco_ray.serving.problems import Problem
from reco_ray.serving.rate_limit import RateLimiter

LIMITS = Limits(bytes=1000, seconds=0.5, rate=1, burst=3)


class Counted:
    """Stands in for Prometheus, which needs Ray."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []

    def request(self, endpoint: str, method: str, code: int, seconds: float) -> None:
        self.seen.append((endpoint, method, code))


class Service:
    """The application behind all middlewares."""

    def __init__(self, keys: KeyRing | None = None) -> None:
        self.counted = Counted()
        self.rates = RateLimiter(LIMITS.rate, LIMITS.burst)
        self.draining = False
        draining = partial(refuse_when_draining, lambda: self.draining)
        checks: list[Check] = [draining, require_loopback]
        if keys is not None:
            checks = [draining, partial(require_key, keys), partial(limit_rate, self.rates)]
        self.app = add_middlewares(application, LIMITS, self.counted, checks)  # type: ignore[arg-type]


async def application(scope: Any, receive: Any, send: Any) -> None:
    request = Request(scope, receive)
    body = await request.body()
    if scope["path"] == "/v1/slow":
        await asyncio.sleep(10)
    if scope["path"] == "/v1/broken":
        raise RuntimeError("secret")
    response: Response = JSONResponse({"bytes": len(body), "owner": scope["state"]["owner"]})
    await response(scope, receive, send)


def ask(
    service: Service, method: str = "GET", path: str = "/v1/x", *, client: str = "127.0.0.1", **options: Any
) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=False, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as session:
            return await session.request(method, path, **options)

    return asyncio.run(run())


def is_problem(answer: httpx.Response, status: int) -> bool:
    body = answer.json()
    kind = answer.headers["content-type"] == "application/problem+json"
    return kind and answer.status_code == status == body["status"] and len(body) == 5


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Service, str, str]:
    (anna, anna_line), (ben, ben_line) = new_key("anna"), new_key("ben")
    (tmp_path / "keys").write_text(f"{anna_line}\n{ben_line}\n")
    return Service(KeyRing(str(tmp_path / "keys"))), anna, ben


def test_every_answer_carries_security_headers(service: Service) -> None:
    for answer in (ask(service), ask(service, path="/v1/broken"), ask(service, path="/v1/slow")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"


def test_a_body_is_counted_while_it_comes_in(service: Service) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield b"x" * 100

    assert ask(service, "POST", content=b"x" * 1000).json()["bytes"] == 1000
    assert is_problem(ask(service, "POST", content=b"x" * 1001), 413)
    assert is_problem(ask(service, "POST", content=endless()), 413)  # no Content-Length, no end
    assert sent <= 5000
    lying = {"content-length": "10"}
    assert ask(service, "POST", content=b"x" * 2000, headers=lying).status_code == 413


@pytest.mark.parametrize("length", ["1001", "99999999999999999999"])
def test_a_declared_length_is_enough_to_refuse(service: Service, length: str) -> None:
    assert is_problem(ask(service, "POST", content=b"x", headers={"content-length": length}), 413)


def test_compressed_bodies_are_not_unpacked(service: Service) -> None:
    assert is_problem(ask(service, "POST", content=b"x", headers={"content-encoding": "gzip"}), 415)


def test_what_takes_too_long_is_503_and_says_when_to_come_again(service: Service) -> None:
    answer = ask(service, path="/v1/slow")
    assert is_problem(answer, 503)
    assert answer.headers["retry-after"] == "1"


def test_a_failure_is_logged_and_not_told(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    answer = ask(service, path="/v1/broken", headers={"x-request-id": "abc<\u00e9> 12\u00a0".encode()})  # type: ignore[dict-item]
    logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert is_problem(answer, 500)
    assert "secret" not in answer.text
    assert answer.json()["request_id"] == "abc12"
    assert "secret" in caplog.text


@pytest.mark.parametrize("client", ["192.168.1.9", "::ffff:10.0.0.1", "testclient"])
def test_without_keys_other_machines_are_refused(service: Service, client: str) -> None:
    assert is_problem(ask(service, client=client), 403)


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example"}, {"host": "localhost.evil.example:8000"}, {"sec-fetch-site": "cross-site"}],
)
def test_without_keys_other_web_sites_are_refused(service: Service, headers: dict[str, str]) -> None:
    assert is_problem(ask(service, headers=headers), 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
def test_without_keys_this_machine_is_answered(service: Service, host: str) -> None:
    assert ask(service, headers={"host": host}).json()["owner"] == "local"


def test_keys_open_and_name_their_owner(keys: tuple[Service, str, str]) -> None:
    service, anna, ben = keys
    assert ask(service, headers={"authorization": f"Bearer {anna}"}).json()["owner"] == "anna"
    assert ask(service, headers={"x-api-key": ben}, client="203.0.113.9").json()["owner"] == "ben"
    basic = base64.b64encode(f"whoever:{anna}".encode()).decode()
    assert ask(service, headers={"authorization": f"Basic {basic}"}).json()["owner"] == "anna"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Basic YTpi"},
        {"authorization": "Basic !"},
        {"x-api-key": "reco_x"},
    ],
)
def test_without_a_key_nothing_opens(keys: tuple[Service, str, str], headers: dict[str, str]) -> None:
    for path in ("/v1/x", "/v1/vocabularies", "/v1/info/../x", "//v1/info", "/v1/infos", "/unknown"):
        answer = ask(keys[0], path=path, headers=headers)
        assert is_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["/", "/page/index.html", "/healthz", "/readyz", "/openapi.json", "/v1/info", "/v1/examples/cat"]
)
def test_the_page_and_what_it_shows_first_need_no_key(keys: tuple[Service, str, str], path: str) -> None:
    assert ask(keys[0], path=path).status_code == 200


def test_one_key_cannot_use_up_anothers_rate(keys: tuple[Service, str, str]) -> None:
    service, anna, ben = keys
    codes = [ask(service, headers={"x-api-key": anna}).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    answer = ask(service, headers={"x-api-key": anna})
    assert is_problem(answer, 429)
    assert answer.headers["retry-after"] == "1"
    assert ask(service, headers={"x-api-key": ben}).status_code == 200
    with pytest.raises(Problem):
        service.rates.take("ben", 3)


def test_a_draining_server_takes_nothing_new(service: Service) -> None:
    service.draining = True
    answer = ask(service)
    assert is_problem(answer, 503)
    assert "retry-after" in answer.headers
    assert ask(service, path="/healthz").status_code == 200


def test_the_log_has_ids_and_sizes_and_no_content(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    before, logger.level = logger.level, logging.INFO
    ask(
        service,
        "POST",
        content=b"image bytes",
        headers={"x-request-id": "r1", "authorization": "Bearer hidden"},
    )
    logger.setLevel(before)
    logger.removeHandler(caplog.handler)
    line = json.loads(caplog.messages[-1])
    assert (line["request_id"], line["status"], line["bytes_in"], line["path"]) == ("r1", 200, 11, "/v1/x")
    assert service.counted.seen == [("other", "POST", 200)]
    assert "image bytes" not in caplog.text
    assert "hidden" not in caplog.text


def test_head_and_a_trailing_slash_pass_all_middlewares(keys: tuple[Service, str, str]) -> None:
    service, anna, _ = keys
    head = ask(service, "HEAD", "/v1/x/", headers={"x-api-key": anna})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["x-content-type-options"] == "nosniff"
    refused = ask(service, "HEAD", "/v1/x/")
    assert (refused.status_code, refused.content) == (401, b"")
    assert ask(service, path="/healthz/").status_code == 200
    assert service.counted.seen[:2] == [("other", "HEAD", 200), ("other", "HEAD", 401)]


def test_bodies_in_memory_are_counted_over_all_requests() -> None:
    limits = Limits(bytes=1000, held=1000, seconds=0.5)
    held = add_middlewares(application, limits, Counted(), [])  # type: ignore[arg-type]

    async def both() -> list[httpx.Response]:
        transport = httpx.ASGITransport(held, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as session:
            asked = (session.post("/v1/slow", content=b"x" * 600) for _ in range(2))
            slow = await asyncio.gather(*asked)
            return [*slow, await session.post("/v1/x", content=b"x" * 900)]

    *slow, after = asyncio.run(both())
    told = sorted(answer.json()["detail"] for answer in slow)
    assert told == ["not answered within 0.5 s", "too many large bodies at once"]
    assert after.status_code == 200  # what was held is given back, however a request ended
