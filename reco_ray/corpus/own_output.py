"""Folders that reco-ray wrote itself, which are never taken for a source when they lie inside one."""

import json
from collections.abc import Collection

from reco_ray.files import artifacts, storage

MARK = ".reco-ray"
_MOST_BYTES = 1 << 24


def mark_output(out: str) -> None:
    """Leaves a mark in a folder that is about to be made, so that a listing knows it again.

    A folder that is there already belongs to somebody else, who may keep photographs in it: it gets no mark, and the
    artifacts in it are known by their manifests.
    """
    if not storage.exists(out):
        storage.write_bytes(storage.join(out, MARK), b"Written by reco-ray: never read as a source.\n")


def is_marked(names: Collection[str]) -> bool:
    """Whether these are the names of the files of a folder that `mark_output` marked."""
    return MARK in names


def is_artifact(folder: str, names: Collection[str]) -> bool:
    """Whether a folder is an artifact, finished or not.

    Args:
        names: of the files directly inside.

    Raises:
        StoreUnavailable: its store does not answer.
    """
    if artifacts.MANIFEST in names:
        found = _read(storage.join(folder, artifacts.MANIFEST))
        if str(found.get("made_by", "")).startswith("reco-ray ") and "kind" in found:
            return True
    return artifacts.STARTED in names and {"kind", "made_from"} <= set(
        _read(storage.join(folder, artifacts.STARTED))
    )


def _read(uri: str) -> dict[str, object]:
    """A JSON object, empty if it is none or cannot be read: many programs call a file manifest.json."""
    try:
        found = json.loads(storage.read_bytes(uri, _MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
