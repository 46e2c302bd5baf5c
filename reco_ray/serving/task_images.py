"""Images that annotation tasks name by their address, fetched from where the server's owner allows and nowhere else.

A server that fetched any address would let its callers reach hosts that only the server can. So an address is fetched
if it is task data of the Label Studio that the server was started with, or below one of the allowed prefixes; the same
holds for every redirect. Images inside the request (data URLs) need no permission; files of the server's machine are
never read.
"""

import os
import re
from urllib.parse import unquote, urlsplit

import requests

from reco_ray.corpus import web
from reco_ray.errors import RecoError, UsageError, reason
from reco_ray.files import storage
from reco_ray.serving.base64_images import image_bytes
from reco_ray.serving.problems import Problem

TOKEN = "LABEL_STUDIO_API_KEY"
_PORTS = {"http": 80, "https": 443}
_ODD = re.compile(r"[\x00-\x20\x7f\\]")
# Where Label Studio keeps the images of tasks: the token must not open its interface to those who call this server.
_TASK_DATA = re.compile(r"(data|storage-data|(tasks|projects)/\d+/(resolve|presign))/")
_REFRESH_SECONDS = 10


class TaskImages:
    """Reads the images of tasks.

    Args:
        label_studio: its address, such as http://127.0.0.1:8080; None = there is none.
        prefixes: addresses (http, https, s3, gs) below which images may be fetched.
        limit: of an image, bytes.
    """

    def __init__(self, label_studio: str | None, prefixes: list[str], limit: int) -> None:
        self._label_studio = None if label_studio is None else label_studio.rstrip("/") + "/"
        self._prefixes = [prefix.rstrip("/") + "/" for prefix in prefixes]
        self._limit = limit

    def read(self, address: object) -> bytes:
        """The encoded image.

        Raises:
            Problem: 422, the address is not allowed, or nothing can be had there.
        """
        if not isinstance(address, str):
            raise Problem(422, "tasks: the image must be an address or a data URL")
        if address[:5].lower() == "data:":
            data = image_bytes(address)
            if isinstance(data, Problem):
                raise data
            return data
        if address.startswith("/") and not address.startswith("//") and self._label_studio:
            address = self._label_studio.rstrip("/") + address
        try:
            if web.is_web(address):
                return web.fetch(address, self._limit, self._headers)
            self._require_allowed(address)
            return storage.read_bytes(address, self._limit)
        except (OSError, RecoError) as error:
            raise Problem(422, f"{address[:200]}: {reason(error)}") from None

    def _headers(self, address: str) -> dict[str, str]:
        """Headers to ask an address with: a token for Label Studio, none for others; OSError if it is not allowed."""
        studio = self._label_studio
        if studio is not None and is_below(address, studio):
            path = urlsplit(address).path.removeprefix(urlsplit(studio).path)
            if _TASK_DATA.match(path):
                return self._credentials()
        self._require_allowed(address)
        return {}

    def _require_allowed(self, address: str) -> None:
        if any(is_below(address, prefix) for prefix in self._prefixes):
            return
        hint = "--label-studio URL or --fetch PREFIX" if web.is_web(address) else "--fetch PREFIX"
        raise OSError(f"this server does not fetch it: start it with {hint} to allow it")

    def _credentials(self) -> dict[str, str]:
        token = os.environ.get(TOKEN, "")
        if not token:
            return {}
        if token.count(".") != 2:
            return {"Authorization": f"Token {token}"}
        # A personal access token, for which Label Studio gives one that is valid for minutes.
        try:
            answer = requests.post(
                f"{self._label_studio}api/token/refresh",
                json={"refresh": token},
                timeout=_REFRESH_SECONDS,
                allow_redirects=False,
            )
            answer.raise_for_status()
            return {"Authorization": f"Bearer {answer.json()['access']}"}
        except (requests.RequestException, ValueError, KeyError) as error:
            raise OSError(f"Label Studio does not take {TOKEN}: {reason(error)}") from error


def is_below(address: str, prefix: str) -> bool:
    """Whether an address is below a prefix that ends in a slash: same scheme, host and port, and inside its path."""
    if _ODD.search(address):
        return False
    try:
        asked, allowed = urlsplit(address), urlsplit(prefix)
        ports = [part.port or _PORTS.get(part.scheme) for part in (asked, allowed)]
    except ValueError:
        return False
    if asked.username is not None or asked.password is not None:
        return False
    path = unquote(unquote(asked.path))
    if ".." in path.replace("\\", "/").split("/"):
        return False
    same_host = (asked.scheme, asked.hostname) == (allowed.scheme, allowed.hostname) and ports[0] == ports[1]
    return same_host and (asked.path or "/").startswith(allowed.path)


def require_prefixes(label_studio: str | None, prefixes: list[str]) -> None:
    """Checks the addresses that a server is started with.

    Raises:
        UsageError: one is no address of its kind.
    """
    given = [("--fetch", prefix) for prefix in prefixes]
    if label_studio is not None:
        given.append(("--label-studio", label_studio))
    for option, address in given:
        parts = urlsplit(address)
        schemes = ("http", "https") if option == "--label-studio" else ("http", "https", "s3", "gs")
        if parts.scheme not in schemes or not parts.hostname or parts.query or parts.username is not None:
            expected = (
                "http://HOST:PORT"
                if option == "--label-studio"
                else "https://HOST/PATH/ or s3://BUCKET/PATH/"
            )
            raise UsageError(f"{option} {address}: expected an address such as {expected}")
