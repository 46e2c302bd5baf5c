"""Replaces an artifact in its directory, as `reco-ray run` does when its settings or inputs have changed.

A directory is cleared only if its manifest or `started.json` is of an artifact of the same kind, and only if each file
has a name that this kind's stage writes. The steps, each of which may be interrupted:

1. delete the manifest, so that the artifact is unfinished; `started.json` marks the directory as being cleared;
2. delete all other files; a run that finds such a directory restarts here;
3. write `started.json` of the new artifact.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow.fs as pafs

from reco_ray.errors import RecoError
from reco_ray.files import artifacts, storage
from reco_ray.files.artifacts import SUMMARY
from reco_ray.files.checksums import FILE, FOLDER
from reco_ray.files.differences import describe_differences
from reco_ray.files.retries import retried
from reco_ray.presentation.console import console

_COMMON = re.compile(
    "|".join(map(re.escape, (artifacts.MANIFEST, artifacts.STARTED, SUMMARY, FILE)))
    + f"|{FOLDER}/[^/]+\\.parquet"
)
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp$")  # of a write that was killed
_AT_ONCE = 16


def print_status(stage: str, what: str) -> None:
    """Prints what a stage keeps, adds or replaces."""
    console.print(f"{stage:<10} {what}")


def clear_outdated(
    writer: artifacts.ArtifactWriter,
    stage: str,
    is_own: Callable[[str], bool],
    *,
    last: str | None = None,
    keep: str | None = None,
) -> None:
    """Clears the writer's directory if its artifact has another `made_from`, and prints the differences.

    Args:
        writer: of the artifact.
        stage: for the line on the terminal.
        is_own: whether the stage writes files of this name, a path relative to the artifact.
        last: the file that `is_own` reads names from; deleted after all others.
        keep: a folder that is kept, as its files are named by their content.

    Raises:
        RecoError: the directory has other content or unknown files; nothing is deleted.
    """
    stored = writer.stored()
    if stored is None or stored == writer.made_from:
        return
    if stored == artifacts.BEING_CLEARED:
        print_status(stage, "the run that was replacing it goes on: made anew")
    else:
        print_status(stage, f"was made with {describe_differences(stored, writer.made_from)}: made anew")
    clear(writer, is_own, last=last, keep=keep)


def clear(
    writer: artifacts.ArtifactWriter,
    is_own: Callable[[str], bool],
    *,
    last: str | None = None,
    keep: str | None = None,
) -> None:
    """Deletes all files of an artifact and begins the writer's own. Args and errors as `clear_outdated`."""
    filesystem, root = storage.resolve(writer.uri)
    root = root.rstrip("/")
    selector = pafs.FileSelector(root, recursive=True)
    infos = retried(lambda: filesystem.get_file_info(selector), writer.uri)
    paths = [info.path.removeprefix(f"{root}/") for info in infos if info.type == pafs.FileType.File]
    paths = [path for path in paths if not path.rpartition("/")[2].startswith(".")]  # such as .DS_Store
    for path in paths:
        name = _TEMPORARY.sub("", path)
        if not is_own(name) and not _COMMON.fullmatch(name):
            raise RecoError(
                f"{writer.uri}: is not replaced, because {path} in it is no file of {writer.kind}: move that "
                "elsewhere, or choose another --out"
            )
    writer.begin(artifacts.BEING_CLEARED)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        deleted_later = (artifacts.STARTED, last)
        to_delete = [path for path in paths if path not in deleted_later and not path.startswith(f"{keep}/")]
        list(pool.map(lambda path: storage.remove(storage.join(writer.uri, path)), to_delete))
    if last is not None:
        storage.remove(storage.join(writer.uri, last))
    if isinstance(filesystem, pafs.LocalFileSystem):
        _remove_empty_folders(root)
    writer.begin()


def _remove_empty_folders(root: str) -> None:
    for folder, _, _ in os.walk(root, topdown=False):
        if folder != root and not os.listdir(folder):
            os.rmdir(folder)
