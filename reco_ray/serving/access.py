"""Authentication and rate limits: API keys or, without keys, requests from this machine only."""

import asyncio
import base64
import contextlib
import ipaddress
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Scope

from reco_ray.serving.keys import KeyRing
from reco_ray.serving.problems import Problem
from reco_ray.serving.rate_limit import RateLimiter

LOCAL_OWNER = "local"  # owner of all vocabularies if there are no keys
_OPEN = re.compile(r"/|/page/.*|/healthz|/readyz|/openapi\.json|/v1/info|/v1/examples/[^/]*")


async def refuse_when_draining(is_draining: Callable[[], bool], scope: Scope) -> None:
    """Raises Problem 503 for new requests while the server shuts down; `/healthz` still answers."""
    if is_draining() and scope["path"] != "/healthz":
        raise Problem(503, "the server is shutting down", retry_after=5)


async def require_key(keys: KeyRing, scope: Scope) -> None:
    """Sets `owner` from the API key of a request; raises Problem 401 for unknown keys. `_OPEN` paths need no key."""
    if _OPEN.fullmatch(scope["path"]):
        return
    if keys.stale:
        await asyncio.to_thread(keys.read_again)
    owner = keys.owner_of(_key_of(Headers(scope=scope)))
    if owner is None:
        problem = "a key is needed: send it as `Authorization: Bearer KEY`, or as the password of Basic"
        raise Problem(401, problem, headers={"WWW-Authenticate": "Bearer"})
    scope["state"]["owner"] = owner


async def limit_rate(rates: RateLimiter, scope: Scope) -> None:
    """Counts a request of its key; raises Problem 429 above the rate limit."""
    if not _OPEN.fullmatch(scope["path"]):
        rates.take(scope["state"]["owner"])


async def require_loopback(scope: Scope) -> None:
    """Allows requests from this machine only, for servers without keys. Raises Problem 403 for other machines, for web
    pages whose host name resolves to this one (DNS rebinding) and for cross-site requests."""
    headers = Headers(scope=scope)
    client = (scope.get("client") or ("",))[0]
    host = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
    if not (is_loopback(client) and is_loopback(host)):
        raise Problem(403, "without keys this server answers on loopback only: start it with --keys FILE")
    if headers.get("sec-fetch-site", "none") == "cross-site":
        raise Problem(403, "this server does not answer other web sites")


def _key_of(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    if scheme.lower() == "basic":  # all that Label Studio can send; the name is not looked at
        with contextlib.suppress(ValueError):
            return base64.b64decode(key.strip(), validate=True).decode().partition(":")[2]
    return headers.get("x-api-key", "")


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is a loopback one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
