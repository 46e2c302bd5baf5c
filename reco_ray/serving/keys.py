"""API keys: random, shown once, stored as SHA-256 in a file that is reread while the server runs.

A line is `name sha256`; `#` starts a comment. The name owns vocabularies, so a new key for an old name keeps them. Keys
have 256 random bits, so a plain hash without salt resists exhaustive search.
"""

import hashlib
import hmac
import re
import secrets
import time

from reco_ray.errors import MissingError, RecoError, SettingError, UnreadableError, file_error, reason
from reco_ray.files import storage

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LOOK_AGAIN = 5.0  # seconds


def new_key(name: str) -> tuple[str, str]:
    """Creates a key; returns it with its line for the keys file.

    Raises:
        SettingError: the name is invalid (owners are folder names).
    """
    if not NAME.fullmatch(name):
        raise SettingError(
            f"{name!r}: a key's name is made of a-z, 0-9, - and _ and has 63 characters at most"
        )
    key = f"reco_{secrets.token_urlsafe(32)}"
    return key, f"{name} {hashlib.sha256(key.encode()).hexdigest()}"


class KeyRing:
    """The keys of a file.

    Raises:
        RecoError: the file cannot be read, is malformed, or has no key.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._owners = self._read()
        self._read_at = time.monotonic()

    def owner_of(self, key: str) -> str | None:
        """The owner of a key, or None. All stored hashes are compared, each in constant time."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for stored, name in self._owners.items():
            if hmac.compare_digest(stored, digest):
                found = name
        return found

    @property
    def stale(self) -> bool:
        """Whether the file was last read more than 5 seconds ago."""
        return time.monotonic() - self._read_at > _LOOK_AGAIN

    def read_again(self) -> None:
        """Reloads the file; keeps the current keys if it cannot be read."""
        self._read_at = time.monotonic()
        try:
            self._owners = self._read()
        except RecoError:
            return

    def _read(self) -> dict[str, str]:
        try:
            lines = storage.read_bytes(self._uri).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise file_error(f"{self._uri}: the keys cannot be read: {reason(error)}", error) from error
        owners = {}
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 2 or not NAME.fullmatch(words[0]) or not re.fullmatch("[0-9a-f]{64}", words[1]):
                raise UnreadableError(
                    f"{self._uri}: line {number} is not `name sha256`: make one with `reco-ray serve-key NAME`"
                )
            owners[words[1]] = words[0]
        if not owners:
            raise MissingError(f"{self._uri}: no key in it: make one with `reco-ray serve-key NAME`")
        return owners
