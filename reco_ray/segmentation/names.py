"""File names of masks and overlays.

A name depends only on the URI of the image and the root of its source, so that a later run over more images renames
nothing:

- `photos/street/x.jpg` of the source `photos` -> `street/x.jpg`: the path below the root, with its suffix;
- `t.parquet#17`, `a.tar#cat.jpg@512+9000`, `clip.mp4#t=1.5` -> `t.parquet/17`, `a.tar/cat.jpg@512+9000`,
  `clip.mp4/t=1.5`;
- URIs that are no valid file names (longer than a file system allows, with characters that Windows or URIs reserve,
  outside the root, or a web address with a query) -> the readable part, and `~` with a digest of the URI.
"""

import hashlib
import re

import pyarrow as pa

from reco_ray.corpus.containers import is_container

# File systems allow 255 bytes for a name; `.png` is added to it, and `.1a2b3c4d.tmp` while it is written.
MAX_NAME_BYTES = 200
# Object stores allow 1,024 bytes for a whole key, of which the artifact's own path needs some.
MAX_PATH_BYTES = 700

_RESERVED = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\#%]')
_DEVICE = re.compile(r"(con|nul|prn|aux|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # no file name on Windows
_DIGESTED = re.compile(r"~[0-9a-f]{12}$")


def add_names(images: pa.Table, root: str) -> pa.Table:
    """Adds the column `name` to a listing and drops repeated URIs, which share one mask; the order is kept.

    Args:
        images: with a column `uri`.
        root: of the listing.
    """
    uris = images["uri"].to_pylist()
    first = {uri: row for row, uri in reversed(list(enumerate(uris)))}
    once = images.take(pa.array(sorted(first.values()), pa.int64()))
    return once.append_column(
        "name", pa.array([file_name(uri, root) for uri in once["uri"].to_pylist()], pa.string())
    )


def file_name(uri: str, root: str) -> str:
    """Path of an image's output, without suffix; unique among the images of a root.

    Args:
        uri: of the image.
        root: folder, folder of a glob, or container of the source.
    """
    inside, below = _below(uri, root)
    container, hash_sign, member = below.partition("#")
    is_member = bool(hash_sign) and is_container(container)
    parts = [*container.split("/"), *member.split("/")] if is_member else below.split("/")
    plain = inside and all(map(_is_plain, parts)) and not any(map(_is_picture, parts[:-1]))
    if not is_member:  # else a folder `t.parquet` and a table `t.parquet` might give the same names
        plain = plain and not any(map(is_container, parts[:-1]))
    name = "/".join(parts)
    if plain and len(name.encode()) <= MAX_PATH_BYTES:
        return name
    readable = [_readable(part) for part in parts if part not in ("", ".", "..")] or ["image"]
    folders = [f"{part}_" if _is_picture(part) else part for part in readable[:-1]]
    if len("/".join([*folders, readable[-1]]).encode()) > MAX_PATH_BYTES:
        folders = []
    digest = hashlib.sha256((below if inside else uri).encode()).hexdigest()[:12]
    return "/".join([*folders, f"{_cut(readable[-1], MAX_NAME_BYTES - 13)}~{digest}"])


def _below(uri: str, root: str) -> tuple[bool, str]:
    """Whether a URI is below the root, and its path relative to it; paths in a container include its name."""
    folder = root.rpartition("/")[0] if is_container(root) else root.rstrip("/")
    if uri.startswith(f"{folder}/"):
        return True, uri[len(folder) + 1 :]
    return False, uri.partition("://")[2] or uri


def _is_plain(part: str) -> bool:
    return (
        part not in ("", ".", "..")
        and not _RESERVED.search(part)
        and not _DEVICE.match(part)
        and not _DIGESTED.search(part)
        and not part.endswith((" ", "."))
        and len(part.encode()) <= MAX_NAME_BYTES
    )


def _is_picture(folder: str) -> bool:
    """Whether a folder may collide with the mask or overlay of an image beside it: `x.jpg.png/`."""
    return folder.lower().endswith((".png", ".jpg"))


def _readable(part: str) -> str:
    plain = _RESERVED.sub("_", part)
    plain = f"_{plain}" if _DEVICE.match(plain) else plain
    return _cut(plain, MAX_NAME_BYTES).rstrip(" .") or "_"


def _cut(text: str, most: int) -> str:
    """Truncates to at most `most` bytes of UTF-8, at a character boundary."""
    return text.encode()[:most].decode(errors="ignore")
