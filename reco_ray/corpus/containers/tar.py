"""Images inside tars, as WebDataset writes them: streamed once, and each read again by its place in the file."""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator

from reco_ray.corpus.containers import ReadOptions
from reco_ray.corpus.kinds import HEAD, IMAGE_SUFFIXES, begins_as_picture, is_junk_path, suffix_of
from reco_ray.errors import reason
from reco_ray.files import filesystems as stores
from reco_ray.files.retries import StoreUnavailable

SUFFIXES = (".tar",)
KIND = "archive"
# tar#name@offset+size: the place makes a member one small request, the name tells a reader what it is.
_ADDRESS = re.compile(r"(?P<tar>.*?\.tar)#.*@(?P<offset>\d+)\+(?P<size>\d+)", re.IGNORECASE | re.DOTALL)
_PIECE = 4 << 20  # bytes a request of the stream


def members(uri: str, options: ReadOptions) -> Iterator[tuple[str, bytes | OSError]]:
    """(address, bytes) of every image in a tar, in one pass: files with the suffixes of images, and those without any
    suffix that begin as an image. Several tars one behind another in a file (`cat a.tar b.tar`) are read to the last.

    A tar that breaks off gives the members before the break, then itself with an error, and that is the end. One that
    has files, but no image, is itself with an error too. Hidden files and those of systems are passed over.

    Args:
        uri: an uncompressed tar.
        options: images beyond the limit are refused unread.

    Raises:
        OSError: it cannot be opened.
        StoreUnavailable: it could not be read on.
    """
    with stores.open_file(uri, _PIECE) as file:
        found, others = 0, Counter[str]()
        try:
            start: int | None = 0
            while start is not None:
                file.seek(start)
                with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
                    while (entry := tar.next()) is not None:
                        tar.members.clear()  # type: ignore[attr-defined] # it would remember every header
                        if not entry.isreg() or is_junk_path(entry.name.split("/")):
                            continue
                        if not _is_wanted(file, entry):
                            others[suffix_of(entry.name)] += 1
                            continue
                        found += 1
                        address = f"{uri}#{entry.name}@{entry.offset_data}+{entry.size}"
                        if entry.size > options.limit:
                            error = OSError(
                                f"too large: {entry.size:,} bytes, the limit is {options.limit:,}"
                            )
                            yield address, error
                            continue
                        file.seek(entry.offset_data)
                        data = file.read(entry.size)
                        if len(data) < entry.size:
                            raise tarfile.ReadError("unexpected end of data")
                        yield address, data
                    start = _next_tar(file, tar.offset)
            file.seek(-512, 2)
            end = file.read(512)
        except StoreUnavailable:
            raise
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            yield uri, OSError(f"damaged tar: {reason(error)}")
            return
        if end.strip(b"\0"):
            yield uri, OSError("damaged tar: it ends without its end mark, members may be missing")
        elif others and not found:
            kinds = ", ".join(
                f"{count:,} {suffix or 'without a suffix'}" for suffix, count in others.most_common(4)
            )
            yield uri, OSError(f"no images in it: its files are {kinds}")


def _is_wanted(file: io.BufferedReader, entry: tarfile.TarInfo) -> bool:
    if entry.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    if suffix_of(entry.name):
        return False
    file.seek(entry.offset_data)
    return begins_as_picture(file.read(min(HEAD, entry.size)))


def _next_tar(file: io.BufferedReader, end_mark: int) -> int | None:
    """Where another tar begins behind the end mark of one; None if nothing but zeros follows, or no mark is there.

    Raises:
        ReadError: something else is there, which is no header.
    """
    file.seek(end_mark)
    place = end_mark
    while piece := file.read(_PIECE):
        if rest := len(piece.lstrip(b"\0")):
            place += (len(piece) - rest) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            if place == end_mark and len(piece) >= tarfile.BLOCKSIZE:
                raise tarfile.ReadError("no header where a member should begin, what follows is lost")
            return None if place == end_mark else place
        place += len(piece)
    return None


def owns(address: str) -> bool:
    """Whether this is the address of a file inside a tar."""
    return _ADDRESS.fullmatch(address) is not None


def read(address: str, limit: int) -> bytes:
    """The bytes at an address that `members` gave.

    Raises:
        OSError: they cannot be read.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise OSError("no address inside a tar: expected file.tar#name@offset+size")
    size = int(parts["size"])
    if size > limit:
        raise OSError(f"too large: {size:,} bytes, the limit is {limit:,}")
    with stores.open_file(parts["tar"], buffer=max(1, min(size, _PIECE))) as file:
        file.seek(int(parts["offset"]))
        data = file.read(size)
    if len(data) < size:
        raise OSError("beyond the end of the tar")
    return data
