"""Every file under a folder, on disk or in a store, with what is no source of images told apart.

On disk real folders come first, links to folders after them: a folder that several paths lead to is visited once, by
its real path if it has one under the root, and a link that leads up is not followed.
"""

import heapq
import os
import re
import stat
from collections.abc import Iterator
from enum import Enum

import pyarrow.fs as pafs

from reco_ray.corpus.kinds import is_junk, is_junk_folder
from reco_ray.corpus.own_output import MARK, is_artifact, is_marked
from reco_ray.errors import MissingError, UnreadableError, file_error, reason
from reco_ray.files import artifacts, storage
from reco_ray.files import filesystems as stores
from reco_ray.files.retries import is_transient, retried


class Found(Enum):
    """What stands at a path."""

    FILE = "a file"
    BROKEN = "a link to what is not there, or a name that is not UTF-8"
    CLOSED = "a folder that cannot be listed"
    SPECIAL = "a pipe, a socket or a device"
    JUNK = "a file or a whole folder of a system or a tool"
    OWN = "a folder that reco-ray wrote"
    LINK = "a link to a folder that is visited anyhow"


Entry = tuple[str, int, Found]  # URI, size in bytes (-1 = unknown), what it is


def walk(uri: str, *, all_names: bool = False, artifacts: bool = False) -> Iterator[Entry]:
    """Every file under a folder, or the one file that `uri` is, in no particular order.

    A folder that is `CLOSED`, `OWN` or `JUNK` is one entry, and so is every link to a folder that is not followed.

    Args:
        uri: absolute.
        all_names: hidden files and those of systems are files like others.
        artifacts: `uri` itself may be an artifact.

    Raises:
        RecoError: nothing is there, it cannot be listed, or it is an artifact.
    """
    filesystem, path = storage.resolve(uri)
    place = _Place(uri, filesystem, path)
    try:
        info = retried(lambda: filesystem.get_file_info(path), uri)
        if info.type == pafs.FileType.NotFound:
            private = ", or a private one and no HF_TOKEN" if uri.startswith("hf://") else ""
            link = " (a link to what is not there)" if place.local and os.path.islink(path) else ""
            raise MissingError(f"{uri}: no such file or folder{link}{private}")
        if info.type != pafs.FileType.Directory:
            kind = Found.FILE if info.type == pafs.FileType.File else Found.SPECIAL
            yield place.uri_of(info.path), -1 if info.size is None else info.size, kind
        elif place.local:
            yield from _local(place, all_names, artifacts)
        else:
            yield from _store(place, all_names, artifacts)
    except OSError as error:
        raise file_error(f"{uri}: cannot be listed: {reason(error)}", error) from error


class _Place:
    """Where a walk begins, and how its paths become URIs."""

    def __init__(self, uri: str, filesystem: pafs.FileSystem, path: str) -> None:
        self.uri, self.filesystem, self.path = uri, filesystem, path
        self.local = isinstance(filesystem, pafs.LocalFileSystem)
        self._prefix = uri[: len(uri) - len(path)] if uri.endswith(path) else uri.partition("://")[0] + "://"
        if "://" not in uri:
            self._prefix = ""
        # pyarrow reads percent escapes in URIs, so a percent sign in a name must be one.
        self._escapes = "://" in uri and not isinstance(filesystem, pafs.PyFileSystem)

    def uri_of(self, path: str) -> str:
        return self._prefix + (path.replace("%", "%25") if self._escapes else path)

    def is_own(self, folder: str, names: set[str], artifacts: bool) -> bool:
        """Whether reco-ray wrote a folder; the root may be a run's output, whose artifacts are known by themselves.

        Raises:
            UnreadableError: it is the root, and an artifact.
        """
        if folder != self.path:
            return is_marked(names) or is_artifact(self.uri_of(folder), names)
        if not artifacts and is_artifact(self.uri, names):
            raise UnreadableError(
                f"{self.uri}: reco-ray wrote this itself, it is no source of images: name the folder of the "
                f"photographs; pictures inside can be named, e.g. {self.uri.rstrip('/')}/overlays"
            )
        return False


# --- on disk ------------------------------------------------------------------------------------------------

_OWN_NAMES = (MARK, artifacts.MANIFEST, artifacts.STARTED)


def _local(place: _Place, all_names: bool, artifacts: bool) -> Iterator[Entry]:
    waiting, links = [place.path], list[str]()
    visited = set[tuple[int, int]]()
    while waiting or links:
        is_link = not waiting
        folder = heapq.heappop(links) if is_link else waiting.pop()
        try:
            if is_link and _links_to_parent(folder):
                yield place.uri_of(folder), -1, Found.LINK
                continue
            status = retried(lambda at=folder: os.stat(at), place.uri)  # type: ignore[misc]
            if (status.st_dev, status.st_ino) in visited:
                yield place.uri_of(folder), -1, Found.LINK
                continue
            visited.add((status.st_dev, status.st_ino))
            names = {name for name in _OWN_NAMES if os.path.lexists(os.path.join(folder, name))}
            if names and place.is_own(folder, names, artifacts):
                yield place.uri_of(folder), -1, Found.OWN
                continue
            with retried(lambda at=folder: os.scandir(at), place.uri) as entries:  # type: ignore[misc]
                for entry in entries:
                    name, path = entry.name, entry.path
                    size, kind = _size_and_kind(entry)
                    if not _is_text(name):
                        escaped = os.path.join(folder, escaped_name(name))
                        yield place.uri_of(escaped), -1, Found.CLOSED if kind is None else Found.BROKEN
                    elif kind is None:
                        if is_junk_folder(name) and not all_names:
                            yield place.uri_of(path), -1, Found.JUNK
                        elif entry.is_symlink():
                            heapq.heappush(links, path)
                        else:
                            waiting.append(path)
                    elif is_junk(name) and not all_names:
                        yield place.uri_of(path), size, Found.JUNK
                    else:
                        yield place.uri_of(path), size, kind
        except OSError as error:
            if folder == place.path or is_transient(error):
                raise
            yield place.uri_of(folder), -1, Found.CLOSED


def _size_and_kind(entry: os.DirEntry[str]) -> tuple[int, Found | None]:
    """Size and kind of what stands in a folder; None = a folder, or a link to one."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return -1, None
        status = entry.stat()
    except OSError:
        return -1, Found.BROKEN
    if stat.S_ISDIR(status.st_mode):
        return -1, None
    if stat.S_ISREG(status.st_mode):
        return status.st_size, Found.FILE
    return -1, Found.SPECIAL


def _links_to_parent(link: str) -> bool:
    """Whether a link leads to a folder that it lies in."""
    target, own = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return own == target or own.startswith(target.rstrip("/") + "/")


def _is_text(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped_name(name: str) -> str:
    r"""A path that is not UTF-8, with `\xff` in place of its stray bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def require_file(uri: str) -> None:
    """Refuses what a listing has found and nobody can read; pipes are not opened, which would wait for ever.

    Raises:
        OSError: on disk, and no file.
    """
    filesystem, path = storage.resolve(uri)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise OSError("a link to what is not there") from None
        if "\\x" in path and os.path.lexists(_stray_bytes(path)):
            raise OSError("its name is not UTF-8: rename it") from None
        raise
    if stat.S_ISDIR(mode):
        with os.scandir(path):  # says why it could not be listed
            raise OSError("a folder, not a file")
    if not stat.S_ISREG(mode):
        raise OSError("a pipe, a socket or a device, not a file")


def _stray_bytes(path: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), path.encode())


# --- in stores ----------------------------------------------------------------------------------------------


def _store(place: _Place, all_names: bool, artifacts: bool) -> Iterator[Entry]:
    if stores.is_flat(place.filesystem):
        yield from _flat(place, all_names, artifacts)
        return
    waiting = [place.path]
    while waiting:
        folder = waiting.pop()
        infos = [info for info in _inside(place, folder) if info.path != folder]
        names = {info.base_name for info in infos if info.base_name in _OWN_NAMES}
        if names and place.is_own(folder, names, artifacts):
            yield place.uri_of(folder), -1, Found.OWN
            continue
        for info in infos:
            if info.type == pafs.FileType.Directory:
                if is_junk_folder(info.base_name) and not all_names:
                    yield place.uri_of(info.path), -1, Found.JUNK
                else:
                    waiting.append(info.path)
            elif info.type == pafs.FileType.File:
                junk = is_junk(info.base_name) and not all_names
                size = -1 if info.size is None else info.size
                yield place.uri_of(info.path), size, Found.JUNK if junk else Found.FILE


def _flat(place: _Place, all_names: bool, artifacts: bool) -> Iterator[Entry]:
    """All files at once; their folders show in their names only."""
    infos = [info for info in _inside(place, place.path, recursive=True) if info.type == pafs.FileType.File]
    marked: dict[str, set[str]] = {}
    for info in infos:
        if info.base_name in _OWN_NAMES:
            marked.setdefault(info.path.rpartition("/")[0], set()).add(info.base_name)
    own = {folder for folder, names in marked.items() if place.is_own(folder, names, artifacts)}
    left = dict[str, Found]()  # whole folders, each told once
    start = len(place.path.rstrip("/")) + 1
    for info in infos:
        if (folder := _left_folder(info.path, start, own, all_names)) is not None:
            if folder not in left:
                left[folder] = Found.OWN if folder in own else Found.JUNK
                yield place.uri_of(folder), -1, left[folder]
        else:
            junk = is_junk(info.base_name) and not all_names
            yield place.uri_of(info.path), info.size, Found.JUNK if junk else Found.FILE


def _left_folder(path: str, start: int, own: set[str], all_names: bool) -> str | None:
    """The outermost folder of a file, below the root, that is left out as a whole."""
    end = path.find("/", start)
    while end != -1:
        if path[:end] in own or (not all_names and is_junk_folder(path[start:end])):
            return path[:end]
        start, end = end + 1, path.find("/", end + 1)
    return None


def _inside(place: _Place, folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)
    return list(retried(lambda: place.filesystem.get_file_info(selector), place.uri))
