"""A web server on loopback with images, in place of Label Studio or of a store."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stores import serving

PHOTO = b"\xff\xd8\xff photo"


@dataclass
class ImageHost:
    """asked: paths, with their Authorization. content: path -> file; others get PHOTO. redirects: path -> address."""

    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    content: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """For `stores.serving`. A POST exchanges a token, as Label Studio's does."""
        if method == "POST":
            self.asked.append((path, json.loads(body)["refresh"]))
            return 200, {}, b'{"access": "for minutes"}'
        self.asked.append((path, headers.get("Authorization")))
        if path in self.redirects:
            return 302, {"Location": self.redirects[path]}, b""
        return 200, {}, self.content.get(path, PHOTO)


@contextmanager
def image_host() -> Iterator[ImageHost]:
    """A running ImageHost."""
    host = ImageHost()
    with serving(host.answer) as server:
        host.url = server.url
        yield host
