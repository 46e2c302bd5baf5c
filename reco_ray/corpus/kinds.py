"""What a file of a source is, by its name and its first bytes: an image, a list, an archive, or none of these."""

import re

from reco_ray.corpus import heic

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
    *heic.SUFFIXES,
)
LIST_SUFFIXES = (".txt", ".lst", ".list", ".csv", ".tsv", ".jsonl")
ARCHIVE_SUFFIXES = (
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"),
    *(".zip", ".7z", ".rar", ".cbz", ".gz", ".bz2", ".xz", ".zst"),
)
# Pictures in formats that are not decoded. Camera raw files begin as TIFFs do.
OTHER_PICTURES = (
    *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"),
    *(".psd", ".xcf", ".svg", ".eps", ".ai", ".pdf", ".ico", ".tga", ".pcx", ".exr", ".hdr", ".dds", ".icns"),
    *(".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".ppm", ".pgm", ".pbm", ".pnm", ".pam"),
)
# Common beside images and never images: not worth opening each to look.
_NO_PICTURES = (
    *(
        ".json",
        ".xml",
        ".md",
        ".html",
        ".htm",
        ".log",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".css",
        ".js",
    ),
    *(".py", ".pyc", ".ipynb", ".sh", ".npy", ".npz", ".pkl", ".pt", ".pth", ".safetensors", ".bin", ".h5"),
    *(".db", ".sqlite", ".lock", ".xmp", ".aae", ".thm", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx"),
    *(".mp3", ".wav", ".m4a", ".flac", ".ogg", ".aac", ".srt", ".vtt", ".tfrecord", ".arrow", ".feather"),
    *(".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".md5", ".sha256", ".idx", ".index"),
)

_JUNK_FOLDERS = {
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "__pycache__",
    "_temporary",
    "_delta_log",
}
# Of Windows and macOS, then of Spark and its kin.
_JUNK_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_JUNK_FILES |= {"_success", "_metadata", "_common_metadata"}
_JUNK_STARTS = ("_committed_", "_started_")


def suffix_of(name: str) -> str:
    """The lower-case suffix of a path's last segment, with its dot; "" where there is none, or none that is a word."""
    name = name.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem and re.fullmatch(r"[A-Za-z]\w{0,9}|7z", suffix) else ""


def is_junk_folder(name: str) -> bool:
    """Whether a folder belongs to a system or a tool: hidden ones, `__MACOSX`, Synology's `@eaDir`, recycle bins."""
    return _is_hidden(name) or name.lower() in _JUNK_FOLDERS


def is_junk(name: str) -> bool:
    """Whether a file belongs to a system or a tool: hidden ones, macOS's `._x.jpg`, `Thumbs.db`, Spark's `_SUCCESS`."""
    lower = name.lower()
    return (
        _is_hidden(name) or lower in _JUNK_FILES or lower.endswith(".crc") or lower.startswith(_JUNK_STARTS)
    )


def is_junk_path(segments: list[str]) -> bool:
    """Whether a file, named by the segments of its path, or a folder that it is in, is junk."""
    return is_junk(segments[-1]) or any(map(is_junk_folder, segments[:-1]))


def may_be_picture(name: str) -> bool:
    """Whether a file of no known suffix is worth a look at its first bytes."""
    return not name.endswith("~") and suffix_of(name) not in _KNOWN


_KNOWN = {*OTHER_PICTURES, *_NO_PICTURES, *ARCHIVE_SUFFIXES, *LIST_SUFFIXES}

HEAD = 16  # bytes that `begins_as_picture` looks at
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS = (b"avif", b"avis")


def begins_as_picture(head: bytes, *, tiff: bool = True) -> bool:
    """Whether the first bytes of a file are those of an image that can be decoded.

    Args:
        tiff: TIFF counts. Many other formats begin as it does.
    """
    return (
        head.startswith(_STARTS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS)
        or heic.is_heic(head)
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or (tiff and head.startswith(_TIFF_STARTS))
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") and name not in (".", "..")
