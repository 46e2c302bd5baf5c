"""Images inside tars, as WebDataset writes them: streamed once, and each read again by its place in the file."""

import re
import tarfile
from collections.abc import Iterator

from reco_ray import stores
from reco_ray.errors import reason
from reco_ray.retries import StoreUnavailable

# tar#name@offset+size: the place makes a member one small request, the name tells a reader what it is.
_ADDRESS = re.compile(r"(?P<tar>.*?\.tar)#.*@(?P<offset>\d+)\+(?P<size>\d+)", re.IGNORECASE | re.DOTALL)
_PIECE = 4 << 20  # bytes a request of the stream


def members(uri: str, suffixes: tuple[str, ...], limit: int) -> Iterator[tuple[str, bytes | OSError]]:
    """(address, bytes) of every file in a tar whose name ends so, in one pass.

    A tar that breaks off gives the members before the break, then itself with an error, and that is the end.

    Args:
        uri: an uncompressed tar.
        suffixes: lower-case, of the files wanted.
        limit: larger ones are refused unread, bytes.

    Raises:
        OSError: it cannot be opened.
        StoreUnavailable: it could not be read on.
    """
    with stores.open_file(uri, _PIECE) as file:
        end = b""
        try:
            with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
                while (entry := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # it would remember every header
                    if not entry.isreg() or not entry.name.lower().endswith(suffixes):
                        continue
                    address = f"{uri}#{entry.name}@{entry.offset_data}+{entry.size}"
                    if entry.size > limit:
                        yield address, OSError(f"too large: {entry.size:,} bytes, the limit is {limit:,}")
                        continue
                    file.seek(entry.offset_data)
                    data = file.read(entry.size)
                    if len(data) < entry.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield address, data
            file.seek(-512, 2)
            end = file.read(512)
        except StoreUnavailable:
            raise
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            yield uri, OSError(f"damaged tar: {reason(error)}")
            return
        if end.strip(b"\0"):
            yield uri, OSError("damaged tar: it ends without its end mark, members may be missing")


def is_member(uri: str) -> bool:
    """Whether this is the address of a file inside a tar."""
    return _ADDRESS.fullmatch(uri) is not None


def member(uri: str) -> bytes:
    """The bytes at an address that `members` gave.

    Raises:
        OSError: they cannot be read.
    """
    parts = _ADDRESS.fullmatch(uri)
    if parts is None:
        raise OSError("no address inside a tar: expected file.tar#name@offset+size")
    size = int(parts["size"])
    with stores.open_file(parts["tar"], buffer=max(1, min(size, _PIECE))) as file:
        file.seek(int(parts["offset"]))
        data = file.read(size)
    if len(data) < size:
        raise OSError("beyond the end of the tar")
    return data
