"""ASGI middlewares around the routes, one duty each.

Plain ASGI, so that bodies stream through: a body that is too large is refused while it is received, whatever its
Content-Length is. Middlewares refuse a request by raising a Problem, which `answer_problems` turns into a response.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reco_ray.serving.access import LOCAL_OWNER
from reco_ray.serving.options import Limits
from reco_ray.serving.problems import UNEXPECTED, Problem, problem_response
from reco_ray.serving.serving_metrics import IngressMetrics

Check = Callable[[Scope], Awaitable[None]]
logger = logging.getLogger("ray.serve")
# A refused body is read and discarded up to this multiple of the size limit, and for this many seconds.
_SLACK = 4
_SLACK_SECONDS = 5
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def add_middlewares(
    app: ASGIApp, limits: Limits, metrics: IngressMetrics, checks: Sequence[Check]
) -> ASGIApp:
    """Wraps the application in all middlewares.

    Args:
        checks: run in this order before the body of a request is read.
    """
    inner = run_checks(limit_bodies(limit_time(app, limits.seconds), limits), checks)
    inner = add_headers(drain_refused_bodies(answer_problems(inner), limits.bytes))
    http = log_requests(answer_head(strip_slash(inner)), metrics)

    async def dispatch_by_type(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await app(scope, receive, send)
        # Returning without an answer closes WebSockets, which are not supported.

    return dispatch_by_type


def log_requests(app: ASGIApp, metrics: IngressMetrics) -> ASGIApp:
    """Assigns request ids, and logs and measures requests, without their content.

    Sets in the scope's state: request_id; owner; received, bytes of the body; ended, whether the body is complete.
    """

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        started, method, path, status = time.perf_counter(), scope["method"], scope["path"], 0
        own = {"request_id": _request_id(scope), "owner": LOCAL_OWNER, "received": 0, "ended": False}
        scope["state"] = state = {**scope.get("state", {}), **own}

        async def counted() -> Message:
            message = await receive()
            state["received"] += len(message.get("body", b""))
            state["ended"] = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def send_and_record(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await app(scope, counted, send_and_record)
        except ClientDisconnect:
            status = 499  # the client has closed the connection
        seconds = time.perf_counter() - started
        metrics.request(getattr(scope.get("route"), "path", None) or "other", method, status, seconds)
        line = {
            "request_id": state["request_id"],
            "owner": state["owner"],
            "method": method,
            "path": path[:200],
            "status": status,
            "bytes_in": state["received"],
            "ms": round(seconds * 1000, 1),
        }
        logger.info(json.dumps(line))

    return middleware


def answer_head(app: ASGIApp) -> ASGIApp:
    """Handles HEAD as GET, without sending the body."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "HEAD":
            return await app(scope, receive, send)

        async def send_no_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        scope["method"] = "GET"  # in place: `log_requests` reads the route from the same scope
        await app(scope, receive, send_no_body)

    return middleware


def strip_slash(app: ASGIApp) -> ASGIApp:
    """Handles `/v1/info/` as `/v1/info`. A redirect would lose the body of a POST."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/")
        if path.startswith(scope.get("root_path", "") + "/"):
            scope["path"] = path
        await app(scope, receive, send)

    return middleware


def add_headers(app: ASGIApp) -> ASGIApp:
    """Adds security headers to all answers, and `Cache-Control: no-store` to those of the API."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/v1/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await app(scope, receive, send_with_headers)

    return middleware


def drain_refused_bodies(app: ASGIApp, limit: int) -> ASGIApp:
    """Reads the rest of a refused body, within limits, since clients read no answer while they send."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]

        async def send_at_the_end(message: Message) -> None:
            if message.get("status", 0) >= 400:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SLACK_SECONDS):
                        while not state["ended"] and state["received"] < _SLACK * limit:
                            await receive()
            await send(message)

        await app(scope, receive, send_at_the_end)

    return middleware


def answer_problems(app: ASGIApp) -> ASGIApp:
    """Answers with the Problem that was raised. Other errors are logged and answered as 500 without details."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        started, request_id = False, scope["state"]["request_id"]

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            return await app(scope, receive, watched)
        except ClientDisconnect:
            raise
        except Problem as raised:
            problem = raised
        except Exception:
            logger.exception("request %s failed", request_id)
            problem = Problem(500, UNEXPECTED)
        if not started:  # else the response has already begun
            await problem_response(problem, request_id)(scope, receive, send)

    return middleware


def run_checks(app: ASGIApp, checks: Sequence[Check]) -> ASGIApp:
    """Runs all checks before a request; each may raise a Problem."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        for check in checks:
            await check(scope)
        await app(scope, receive, send)

    return middleware


def limit_bodies(app: ASGIApp, limits: Limits) -> ASGIApp:
    """Refuses compressed and too large bodies, and limits the total size of all bodies in memory."""
    held = 0  # bytes of all bodies of unfinished requests

    def too_large() -> Problem:
        return Problem(413, f"the body has more than {limits.bytes} bytes", headers={"Connection": "close"})

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal held
        headers, kept = Headers(scope=scope), 0
        if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            problem = "bodies must not be compressed: leave Content-Encoding out"
            raise Problem(415, problem, headers={"Accept-Encoding": "identity"})
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limits.bytes:
            raise too_large()

        async def counted() -> Message:
            nonlocal kept, held
            message = await receive()
            size = len(message.get("body", b""))
            if scope["state"]["received"] > limits.bytes:
                raise too_large()
            if held + size > limits.held:
                raise Problem(503, "too many large bodies at once", retry_after=2)
            held, kept = held + size, kept + size
            return message

        try:
            await app(scope, counted, send)
        finally:
            held -= kept

    return middleware


def limit_time(app: ASGIApp, seconds: float) -> ASGIApp:
    """Raises Problem 503 for requests that take longer than `seconds`."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(seconds):
                await app(scope, receive, send)
        except TimeoutError:
            raise Problem(503, f"not answered within {seconds:g} s", retry_after=1) from None

    return middleware


def _request_id(scope: Scope) -> str:
    """The id from the request's header, limited to 64 safe characters, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return re.sub(r"[^A-Za-z0-9._-]", "", given)[:64] or uuid.uuid4().hex
