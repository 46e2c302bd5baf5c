"""Compares the files of a finished artifact with the checksums of its manifest."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from reco_ray.errors import UnreadableError, file_error, reason
from reco_ray.files import storage
from reco_ray.files.artifacts import Content, Manifest, read_manifest
from reco_ray.files.checksums import FILE, list_files, read_sums
from reco_ray.files.recorded_writes import FileChecksum


class Difference(NamedTuple):
    """A file that differs from its committed state."""

    path: str
    what: str


@dataclass(frozen=True)
class Verified:
    """Result of `verify`."""

    manifest: Manifest
    files: int
    bytes: int
    differences: list[Difference]


def verify(uri: str) -> Verified:
    """Compares all files of a finished artifact with its checksums.

    Added files count as differences, since readers read all tables of a folder.

    Raises:
        RecoError: the artifact is unfinished, or was made before checksums were kept.
    """
    manifest = read_manifest(uri, Content)
    checksums = manifest.checksums
    if checksums is None:
        raise UnreadableError(
            f"{uri}: has no checksums, {manifest.made_by} did not keep any: make it again for them"
        )
    try:
        sums = storage.read_bytes(storage.join(uri, FILE))
    except FileNotFoundError:
        return Verified(manifest, 0, 0, [Difference(FILE, "missing")])
    except OSError as error:
        raise file_error(f"{storage.join(uri, FILE)}: cannot be read: {reason(error)}", error) from error
    if hashlib.sha256(sums).hexdigest() != checksums.sha256:
        return Verified(manifest, 0, 0, [Difference(FILE, "content changed")])
    wanted = {
        row["path"]: FileChecksum(row["size"], row["sha256"])
        for row in storage.read_table(storage.join(uri, FILE)).to_pylist()
    }
    filesystem, root = storage.resolve(uri)
    listed = list_files(filesystem, root)
    differences = [Difference(path, "missing") for path in wanted if path not in listed]
    differences += [Difference(path, "not in the checksums") for path in listed if path not in wanted]
    present = [path for path in wanted if path in listed]
    right_size = [path for path in present if listed[path].size == wanted[path].size]
    differences += [
        Difference(path, f"{listed[path].size:,} bytes instead of {wanted[path].size:,}")
        for path in present
        if listed[path].size != wanted[path].size
    ]
    for path, noted in zip(right_size, read_sums(filesystem, root, right_size), strict=True):
        if isinstance(noted, str):
            differences.append(Difference(path, f"cannot be read: {noted}"))
        elif noted != wanted[path]:
            differences.append(Difference(path, "content changed"))
    return Verified(manifest, checksums.files, checksums.bytes, sorted(differences))
