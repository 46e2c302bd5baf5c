"""Chooses what a local Ray needs on this machine: a folder for its files, a token and shared memory.

Containers often run as a user without a home, in a read-only file system or with 64 MB of shared memory. Where Ray's
default would fail, another place is chosen, and a warning says which and why. `session.session` starts Ray with
what is found, `reco-ray doctor` prints it.
"""

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from reco_ray.errors import RecoError, reason
from reco_ray.files.caches import home

_SOCKET_BYTES = 107  # the longest path of a Unix socket, on Linux
# What Ray appends to its folder for the longest of its sockets.
_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_LONGEST_FOLDER = _SOCKET_BYTES - len(_SOCKET)
_LEAST_FREE = 64 << 20  # bytes: below that Ray's processes cannot even write their logs
_PROBE = 1 << 20  # bytes written as a test: quotas are not visible otherwise
SHARED_MEMORY = "/dev/shm"
_LITTLE_SHARED_MEMORY = 1 << 30  # bytes


@dataclass(frozen=True)
class LocalRay:
    """Places that a local Ray uses.

    folder: absolute path for sessions, sockets, logs and spilled objects.
    token: value for $RAY_AUTH_TOKEN; None if Ray finds or writes its own, or uses none.
    objects: the folder of the object store; None for Ray's choice, which is shared memory.
    warnings: deviations from Ray's defaults with reasons, one per line.
    notes: deviations without a cost to the user, shown by `reco-ray doctor` only.
    """

    folder: str
    token: str | None = None
    objects: str | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_places() -> LocalRay:
    """Chooses the places for a local Ray of the current user.

    Raises:
        RecoError: no usable folder, or a variable names an unusable one.
    """
    folder, moved = _folder()
    token, no_file = _token()
    objects, slow = _objects(folder)
    notes = (f"no file for Ray's token ({no_file}): each run has one of its own",) if no_file else ()
    return LocalRay(folder, token, objects, tuple(filter(None, (moved, slow))), notes)


def _folder() -> tuple[str, str]:
    """Ray's folder (below $RAY_TMPDIR, else $TMPDIR, else /tmp), and a warning if it is not the default one."""
    if chosen := os.environ.get("RAY_TMPDIR"):
        folder = os.path.abspath(os.path.join(chosen, "ray"))
        if why := _why_unusable(folder):
            raise RecoError(f"RAY_TMPDIR={chosen}: Ray cannot keep its files in {folder}: {why}")
        return folder, ""
    usual = os.path.abspath(os.path.join(os.environ.get("TMPDIR") or "/tmp", "ray"))
    own = f"ray-{os.getuid()}"
    others = [os.path.join(os.path.dirname(usual), own), "/tmp/ray", f"/tmp/{own}", f"/var/tmp/{own}"]
    refused: dict[str, str] = {}
    for folder in dict.fromkeys([usual, *others]):
        why = _why_unusable(folder) or ("" if folder in (usual, "/tmp/ray") else _why_not_ours(folder))
        if not why:
            first = f"Ray keeps its files in {folder}, not in {usual}: {refused[usual]}" if refused else ""
            return folder, first
        refused[folder] = why
    listed = "; ".join(f"{folder}: {why}" for folder, why in refused.items())
    raise RecoError(
        f"Ray has no folder for its files ({listed}): set RAY_TMPDIR to a folder that can be written, with "
        f"a path of at most {_LONGEST_FOLDER - len('/ray')} bytes"
    )


def _why_unusable(folder: str) -> str:
    """Creates a folder; returns the reason why Ray cannot keep its files there, or ""."""
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        return (
            f"its path has {len(os.fsencode(folder))} bytes, and sockets allow {_LONGEST_FOLDER}: set RAY_TMPDIR "
            "to a shorter folder"
        )
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE))
            probe.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return reason(error)
    if free < _LEAST_FREE:
        return f"only {free / 1e6:.0f} MB are free there"
    return ""


def _why_not_ours(folder: str) -> str:
    """The reason not to trust a folder named after this user, which anyone may have created, or ""."""
    info = os.lstat(folder)
    return "" if info.st_uid == os.getuid() and not os.path.islink(folder) else "another user made it"


def _token() -> tuple[str | None, str]:
    """A token for $RAY_AUTH_TOKEN if no file can hold Ray's, and the reason."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return None, ""
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        if why := _why_no_token(Path(named)):
            raise RecoError(
                f"RAY_AUTH_TOKEN_PATH={named}: {why}: name a file that holds Ray's token, or unset it"
            )
        return None, ""
    path = Path(home(), ".ray", "auth_token")
    why = _why_no_token(path)
    if why and not (why := why_not_written(path)):
        return None, ""  # Ray writes it
    return (secrets.token_hex(32), f"{path}: {why}") if why else (None, "")


def _why_no_token(path: Path) -> str:
    """The reason why no token can be read from a file, or ""."""
    try:
        return "" if path.read_text().strip() else "the file is empty"
    except (OSError, ValueError) as error:
        return reason(error)


def why_not_written(path: Path) -> str:
    """The reason why a file cannot be written, or ""; creates its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with open(path, "a"):
                return ""
        with tempfile.TemporaryFile(dir=path.parent):
            return ""
    except OSError as error:
        return reason(error)


def _objects(folder: str) -> tuple[str | None, str]:
    """A folder for the object store if shared memory cannot be used, and a warning if that is slower."""
    remedy = "docker run --shm-size=8g, or a larger tmpfs there, is faster"
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
        with tempfile.TemporaryFile(dir=SHARED_MEMORY):
            pass
    except FileNotFoundError as error:
        raise RecoError(f"{SHARED_MEMORY} is not there, and Ray needs it: mount a tmpfs there") from error
    except OSError as error:
        why = f"{SHARED_MEMORY} cannot be used ({reason(error)})"
        return folder, f"Ray keeps its objects in {folder}: {why}: {remedy}"
    if free < _LITTLE_SHARED_MEMORY:
        why = f"{SHARED_MEMORY} has only {free / 1e6:.0f} MB free"
        return None, f"Ray keeps its objects in {folder}: {why}: {remedy}"
    return None, ""
