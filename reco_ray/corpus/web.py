"""Downloads images from http:// and https:// addresses, with retries, timeouts, a size limit, a limit per host, and the
proxy of the environment.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from threading import BoundedSemaphore, Lock
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3

from reco_ray import __version__
from reco_ray.errors import reason
from reco_ray.files.proxies import Proxy, proxy_for
from reco_ray.files.retries import StoreUnavailable, retried
from reco_ray.files.slow_requests import report_when_slow

PER_HOST_LIMIT = 8  # concurrent requests to one host from the whole cluster
CONNECT_SECONDS, READ_SECONDS = 10, 30
_MOST_REDIRECTS = 5
_RETRIES = urllib3.Retry(
    connect=2,
    read=2,
    redirect=0,  # followed by `fetch`, as each is a request to another host
    status=4,
    other=0,
    status_forcelist=(408, 425, 429, 500, 502, 503, 504),
    backoff_factor=0.5,
    backoff_jitter=0.5,
    backoff_max=20,
    respect_retry_after_header=True,
    retry_after_max=60,
    raise_on_status=False,
)
_PIECE = 1 << 16


def is_web(uri: str) -> bool:
    """Whether a URI is an http or https address."""
    return uri.startswith(("http://", "https://"))


def fetch(url: str, limit: int, headers_for: Callable[[str], dict[str, str]] | None = None) -> bytes:
    """Downloads an address. Follows at most 5 redirects, to http and https only.

    Args:
        url: the address.
        limit: maximum size, bytes.
        headers_for: called with the address and each redirect before it is asked; returns further headers, or raises
            OSError.

    Raises:
        OSError: the download failed, or is larger than `limit` bytes.
        StoreUnavailable: the proxy cannot be reached or rejects the credentials.
    """
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            headers = {} if headers_for is None else headers_for(url)
            with _slot(urlsplit(url).hostname or ""), report_when_slow(url, _retry_policy):
                found = _request(url, limit, proxy_for(url), headers)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
            if not is_web(url):
                raise OSError("redirected to neither http nor https")
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        raise OSError(_reason_of(cause if isinstance(cause, Exception) else error)) from error
    raise OSError(f"more than {_MOST_REDIRECTS} redirects")


def _retry_policy() -> str:
    return (
        f"each address gets three tries of {CONNECT_SECONDS} seconds to connect and {READ_SECONDS} to answer, and is "
        "rejected then"
    )


def _request(url: str, limit: int, proxy: Proxy | None, headers: dict[str, str]) -> bytes | str:
    """The body, or the location of a redirect."""
    # urllib3 does not retry incomplete bodies.
    for attempt in range(3):
        response = _send(url, proxy, headers)
        try:
            if location := response.get_redirect_location():
                return location
            if response.status != 200:
                raise OSError(f"HTTP status {response.status}")
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and int(length) > limit:
                raise OSError(f"too large: {int(length):,} bytes, the limit is {limit:,}")
            body = bytearray()
            for piece in response.stream(_PIECE):
                body += piece
                if len(body) > limit:
                    raise OSError(f"too large: more than {limit:,} bytes")
            return bytes(body)
        except (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError):
            if attempt == 2:
                raise
        finally:
            response.close()
    raise AssertionError("unreachable")


def _send(url: str, proxy: Proxy | None, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    """Sends the request; an unreachable proxy is retried like a store."""
    pool = _pool(os.getpid(), proxy)
    headers = {"User-Agent": f"reco-ray/{__version__}", **headers}
    if proxy is None:
        return pool.request("GET", url, preload_content=False, redirect=False, headers=headers)
    response = retried(
        lambda: _through_proxy(pool, url, proxy, headers),
        str(proxy),
        lambda error: isinstance(error, _ProxyUnreachable),
        "proxy",
    )
    if response.status == 407:
        response.close()
        raise _credentials_rejected(proxy)
    return response


class _ProxyUnreachable(OSError):
    """The proxy itself cannot be reached."""


def _through_proxy(
    pool: urllib3.PoolManager, url: str, proxy: Proxy, headers: dict[str, str]
) -> urllib3.BaseHTTPResponse:
    try:
        return pool.request("GET", url, preload_content=False, redirect=False, headers=headers)
    except urllib3.exceptions.MaxRetryError as error:
        if not isinstance(error.reason, urllib3.exceptions.ProxyError):
            raise
        cause = error.reason.original_error
        if "Tunnel connection failed" not in str(cause):
            raise _ProxyUnreachable(_reason_of(cause)) from error
        if "407" in str(cause):
            raise _credentials_rejected(proxy) from error
        raise OSError(f"the proxy refuses: {cause}") from error


def _credentials_rejected(proxy: Proxy) -> StoreUnavailable:
    return StoreUnavailable(
        f"{proxy}: the proxy asks for a name and a password (HTTP status 407): "
        f"{proxy.variable}=http://NAME:PASSWORD@HOST:PORT"
    )


@lru_cache(maxsize=4)
def _pool(process: int, proxy: Proxy | None) -> urllib3.PoolManager:
    options: dict[str, Any] = {
        "num_pools": 256,
        "maxsize": PER_HOST_LIMIT,
        "retries": _RETRIES,
        "timeout": urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
    }
    if proxy is None:
        return urllib3.PoolManager(**options)
    if proxy.url.startswith("socks"):
        try:
            from urllib3.contrib.socks import SOCKSProxyManager
        except ImportError as error:
            raise StoreUnavailable(f"{proxy}: SOCKS needs another package: pip install pysocks") from error
        return SOCKSProxyManager(proxy.url, **options)
    asked = urllib3.make_headers(proxy_basic_auth=proxy.credentials) if proxy.credentials else None
    return urllib3.ProxyManager(proxy.url, proxy_headers=asked, **options)


_slots: dict[str, BoundedSemaphore] = {}
_slots_lock = Lock()
_share = PER_HOST_LIMIT


def shares(loaders: int) -> tuple[int, int]:
    """The number of processes, at most `loaders`, and concurrent requests per host of each."""
    loaders = max(1, min(loaders, PER_HOST_LIMIT))
    while PER_HOST_LIMIT % loaders:
        loaders -= 1
    return loaders, PER_HOST_LIMIT // loaders


def limit_per_host(share: int) -> None:
    """Sets the number of concurrent requests per host of this process."""
    global _share
    with _slots_lock:
        if share != _share:
            _share = share
            _slots.clear()


def _slot(host: str) -> BoundedSemaphore:
    with _slots_lock:
        return _slots.setdefault(host, BoundedSemaphore(_share))


def _reason_of(error: BaseException) -> str:
    """The reason of an error, without urllib3's object representations."""
    text = reason(error)
    return text.rpartition(">: ")[2] or type(error).__name__
