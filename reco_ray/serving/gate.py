"""What every request passes first: its id, who sent it, how fast, how large; and every answer last.

Plain ASGI, so that bodies stream through it: a body that is too large is refused while it comes in, whatever its
Content-Length says or leaves out.
"""

import asyncio
import ipaddress
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from reco_ray.serving.keys import KeyRing, TokenBucket
from reco_ray.serving.metrics import IngressMetrics
from reco_ray.serving.options import Limits
from reco_ray.serving.problems import Problem, problem_response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

logger = logging.getLogger("ray.serve")

LOCAL_OWNER = "local"  # whoever calls, where there are no keys
_OPEN = re.compile(r"/|/page/.*|/healthz|/readyz|/openapi\.json|/v1/info|/v1/examples/[^/]*")
_SLACK = 4  # how many times its limit a body is still read, and thrown away, so that its sender hears why
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


class Gate:
    """Wraps the application.

    Args:
        keys: None = nobody needs one; then only loopback is answered.
    """

    def __init__(self, app: App, limits: Limits, keys: KeyRing | None, metrics: IngressMetrics) -> None:
        self._app, self._limits, self._keys, self._metrics = app, limits, keys, metrics
        self._held = 0  # bytes of bodies that are being read or worked on
        self._buckets: dict[str, TokenBucket] = {}
        self.draining = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return  # no WebSocket here: it is closed
        started = time.perf_counter()
        body = _Body(receive, self._limits.bytes, self._hold)
        answer = _Answer(send, scope, body, _request_id(scope))
        scope["state"] = {**scope.get("state", {}), "request_id": answer.request_id, "owner": LOCAL_OWNER}
        try:
            await self._admit(scope, body)
            async with asyncio.timeout(self._limits.seconds):
                await self._app(scope, body, answer)
        except TimeoutError:
            late = Problem(503, f"not answered within {self._limits.seconds:g} s", retry_after=1)
            await self._refuse(scope, answer, late)
        except Problem as problem:
            await self._refuse(scope, answer, problem)
        except ClientDisconnect:
            answer.status = 499  # nobody is there to read an answer
        except Exception:
            logger.exception("request %s failed", answer.request_id)
            failure = Problem(500, "the server failed: its log says why, under this request's id")
            await self._refuse(scope, answer, failure)
        finally:
            self._held -= body.kept
        seconds = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", None) or "other"
        self._metrics.request(route, scope["method"], answer.status, seconds)
        logger.info(
            json.dumps(
                {
                    "request_id": answer.request_id,
                    "owner": scope["state"]["owner"],
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": answer.status,
                    "bytes_in": body.received,
                    "ms": round(seconds * 1000, 1),
                }
            )
        )

    def _hold(self, count: int) -> None:
        """Counts bytes that come in; refuses them where all bodies together would take too much memory."""
        if self._held + count > self._limits.held:
            raise Problem(503, "too many large bodies at once", retry_after=2)
        self._held += count

    def take(self, owner: str, count: int) -> None:
        """Counts requests or images of an owner.

        Raises:
            Problem: 429, too many of them in too little time.
        """
        if self._keys is None:
            return
        bucket = self._buckets.setdefault(owner, TokenBucket(self._limits.rate, self._limits.burst))
        if wait := bucket.take(count):
            raise Problem(
                429,
                f"more than {self._limits.rate:g} requests a second with this key",
                retry_after=math.ceil(wait),
            )

    async def _admit(self, scope: MutableMapping[str, Any], body: "_Body") -> None:
        headers = Headers(scope=scope)
        if self.draining and scope["path"] != "/healthz":
            raise Problem(503, "the server is shutting down", retry_after=5)
        if self._keys is None:
            _require_loopback(scope, headers)
        elif not _OPEN.fullmatch(scope["path"]):
            if self._keys.stale:
                await asyncio.to_thread(self._keys.read_again)
            owner = self._keys.owner_of(_key_of(headers))
            if owner is None:
                raise Problem(
                    401,
                    "a key is needed: send it as `Authorization: Bearer KEY`",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            scope["state"]["owner"] = owner
            self.take(owner, 1)
        if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise Problem(
                415,
                "bodies must not be compressed: leave Content-Encoding out",
                headers={"Accept-Encoding": "identity"},
            )
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._limits.bytes:
            raise body.too_large()

    async def _refuse(self, scope: MutableMapping[str, Any], answer: "_Answer", problem: Problem) -> None:
        if not answer.started:  # else it is too late to say anything
            await problem_response(problem, answer.request_id)(scope, _nothing, answer)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


class _Answer:
    """`send`, adding the headers that every answer has."""

    def __init__(self, send: Send, scope: MutableMapping[str, Any], body: "_Body", request_id: str) -> None:
        self._send, self._scope, self._body, self.request_id = send, scope, body, request_id
        self.status, self.started = 0, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            if self.status >= 400:
                await self._body.drain()
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if self._scope["path"].startswith("/v1/"):
                headers.setdefault("Cache-Control", "no-store")
        await self._send(message)


class _Body:
    """`receive`, counting what comes."""

    def __init__(self, receive: Receive, limit: int, hold: Callable[[int], None]) -> None:
        self._receive, self._limit, self._hold = receive, limit, hold
        self.received, self.kept, self._ended = 0, 0, False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._count(message)
        if self.received > self._limit:
            raise self.too_large()
        self._hold(size := len(message.get("body", b"")))
        self.kept += size
        return message

    async def drain(self) -> None:
        """Reads on and throws away, up to a few limits or seconds: who still sends does not hear an answer."""
        try:
            async with asyncio.timeout(5):
                while not self._ended and self.received < _SLACK * self._limit:
                    self._count(await self._receive())
        except TimeoutError:
            return

    def too_large(self) -> Problem:
        """What to answer."""
        return Problem(413, f"the body has more than {self._limit} bytes", headers={"Connection": "close"})

    def _count(self, message: Message) -> None:
        self.received += len(message.get("body", b""))
        self._ended = message["type"] == "http.disconnect" or not message.get("more_body", False)


def _request_id(scope: MutableMapping[str, Any]) -> str:
    """As Serve's proxy has set it, or the client, who may have written anything there."""
    given = Headers(scope=scope).get("x-request-id", "")
    return re.sub(r"[^A-Za-z0-9._-]", "", given)[:64] or uuid.uuid4().hex


def _key_of(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _require_loopback(scope: MutableMapping[str, Any], headers: Headers) -> None:
    """Without keys, whoever sits at this machine may call, and nobody else: neither from another one, nor a web page
    whose name was made to point here (DNS rebinding) or that posts forms here."""
    client = (scope.get("client") or ("",))[0]
    host = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
    if not (is_loopback(client) and is_loopback(host)):
        raise Problem(403, "without keys this server answers on loopback only: start it with --keys FILE")
    if headers.get("sec-fetch-site", "none") == "cross-site":
        raise Problem(403, "this server does not answer other web sites")


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, for itself only."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
