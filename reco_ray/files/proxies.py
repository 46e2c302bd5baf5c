"""Proxies from environment variables, with the rules of requests.

Reads http_proxy, https_proxy, all_proxy and no_proxy, in upper or lower case; no_proxy takes hosts, domains, addresses
and CIDR ranges. Loopback addresses use the proxy like any other, unless no_proxy names them.
"""

import os
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from requests.utils import get_environ_proxies, select_proxy


@dataclass(frozen=True)
class Proxy:
    """url: with scheme and any credentials. variable: environment variable that it is from."""

    url: str
    variable: str

    def __str__(self) -> str:
        """For messages: without credentials."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} ({self.variable})"

    @property
    def credentials(self) -> str | None:
        """ "name:password"; None without credentials."""
        parts = urlsplit(self.url)
        return (
            None if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        )


def proxy_for(url: str) -> Proxy | None:
    """The proxy for an address; None = direct connection."""
    found = select_proxy(url, get_environ_proxies(url))
    if not found:
        return None
    scheme = urlsplit(url).scheme
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    variable = next((name for name in names if os.environ.get(name) == found), names[0])
    return Proxy(found if "://" in found else f"http://{found}", variable)


def proxy_of(uri: str) -> Proxy | None:
    """The proxy for the store or host of a URI; None = direct connection or local path."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return None
    return proxy_for(uri if scheme in ("http", "https") else _address(scheme, rest.partition("/")[0]))


def _address(scheme: str, bucket: str) -> str:
    """The HTTP address of a store, from the environment or its default."""
    environment = os.environ
    if scheme == "s3":
        named = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
        return _with_scheme(named) if named else f"https://{bucket}.s3.amazonaws.com"
    if scheme in ("gs", "gcs"):
        return _with_scheme(environment.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com")
    if scheme == "hf":
        return environment.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{scheme}://{bucket}"


def _with_scheme(address: str) -> str:
    return address if "://" in address else f"https://{address}"
