"""API keys: random, shown once, kept as SHA-256; a file of them is read again when it changes.

A line is `name sha256`; `#` starts a comment. The name owns vocabularies, so a new key for an old name keeps them. Keys
have 256 random bits, which is why a plain hash is enough: nobody can try them all, salted or not.
"""

import hashlib
import hmac
import re
import secrets
import time

from reco_ray.errors import RecoError, reason
from reco_ray.files import storage

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LOOK_AGAIN = 5.0  # seconds


def new_key(name: str) -> tuple[str, str]:
    """A key, and the line of the keys file that admits it.

    Raises:
        RecoError: a name that cannot be a folder's.
    """
    if not NAME.fullmatch(name):
        raise RecoError(f"{name!r}: a key's name is made of a-z, 0-9, - and _ and has 63 characters at most")
    key = f"reco_{secrets.token_urlsafe(32)}"
    return key, f"{name} {hashlib.sha256(key.encode()).hexdigest()}"


class KeyRing:
    """The keys of a file.

    Raises:
        RecoError: unreadable, malformed, or no key in it.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._owners = self._read()
        self._read_at = time.monotonic()

    def owner_of(self, key: str) -> str | None:
        """The name a key belongs to; every stored hash is compared, in constant time."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for stored, name in self._owners.items():
            if hmac.compare_digest(stored, digest):
                found = name
        return found

    @property
    def stale(self) -> bool:
        """Whether the file should be read again."""
        return time.monotonic() - self._read_at > _LOOK_AGAIN

    def read_again(self) -> None:
        """Takes over changes of the file; while it cannot be read, the keys that are known stay."""
        self._read_at = time.monotonic()
        try:
            self._owners = self._read()
        except RecoError:
            return

    def _read(self) -> dict[str, str]:
        try:
            lines = storage.read_bytes(self._uri).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecoError(f"{self._uri}: the keys cannot be read: {reason(error)}") from error
        owners = {}
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 2 or not NAME.fullmatch(words[0]) or not re.fullmatch("[0-9a-f]{64}", words[1]):
                raise RecoError(
                    f"{self._uri}: line {number} is not `name sha256`: make one with `reco-ray serve-key NAME`"
                )
            owners[words[1]] = words[0]
        if not owners:
            raise RecoError(f"{self._uri}: no key in it: make one with `reco-ray serve-key NAME`")
        return owners
