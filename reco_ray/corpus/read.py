"""Images and their bytes, whatever holds them: a file, a container, a web page."""

from collections.abc import Iterator

import pyarrow as pa

from reco_ray.corpus import web
from reco_ray.corpus.containers import CountedContainer, ReadOptions, container_of, is_container, owner_of
from reco_ray.corpus.listing import Listing, list_files
from reco_ray.corpus.walk import require_file
from reco_ray.errors import MissingError, RecoError, reason
from reco_ray.files import filesystems as stores
from reco_ray.files import storage
from reco_ray.files.retries import StoreUnavailable

MAX_BYTES = 1 << 28  # larger files are no images that anybody wants whole in memory


def list_images(uri: str, image_column: str | None = None) -> Listing:
    """Lists every single image of a source, those inside tars, tables and videos too.

    For the small sides, such as images to segment; `size` of what is inside a container is the container's. A corpus
    is listed by file (`list_files`): what is inside its containers is found while they are read.

    Args:
        image_column: the column of tables that holds the images, where the user names it.

    Raises:
        RecoError: nothing is there, or it holds no images.
    """
    listing = list_files(uri, image_column)
    options = ReadOptions(MAX_BYTES, image_column=image_column)
    uris, sizes = listing.table["uri"], listing.table["size"]
    names: list[str] = []
    known: list[int] = []
    for name, size in zip(uris.to_pylist(), sizes.to_pylist(), strict=True):
        inside = _addresses(name, options) if is_container(name) else [name]
        known += [size] * len(inside)
        names += inside
    if not names:
        raise MissingError(f"{uri}: no images here")
    table = pa.table({"uri": pa.array(names, pa.string()), "size": pa.array(known, pa.int64())})
    return Listing(table, listing.root, listing.fingerprint, listing.left_out)


def _addresses(uri: str, options: ReadOptions) -> list[str]:
    container = container_of(uri)
    if isinstance(container, CountedContainer):
        try:
            require_file(uri)
            return container.addresses(uri, options)
        except StoreUnavailable:
            raise
        except (OSError, RecoError):
            return [uri]  # to be rejected where it is read
    return [address for address, _ in read_members(uri, -1, options.frames_per_second, options.image_column)]


def read_members(
    uri: str, size: int, frames_per_second: float, image_column: str | None = None
) -> Iterator[tuple[str, bytes | OSError]]:
    """Streams a container: (address, encoded image or why there is none), in an order that never changes.

    A container that cannot be opened, or that is not what was listed, is one item: itself, with an error.

    Args:
        size: what the listing says, bytes; -1 if it does not.
        image_column: the column of a table that holds the images, where the user names it.

    Raises:
        StoreUnavailable: its store does not answer.
    """
    try:
        require_file(uri)
        if size >= 0:
            with stores.open_file(uri) as file:
                found = file.seek(0, 2)
            if found != size:
                raise OSError(f"changed since it was listed: {found:,} bytes instead of {size:,}")
        container = container_of(uri)
        if container is None:
            raise OSError("is no container of images")
        yield from container.members(uri, ReadOptions(MAX_BYTES, frames_per_second, image_column))
    except StoreUnavailable:
        raise
    except (OSError, RecoError) as error:
        yield uri, OSError(reason(error))


def read_image_bytes(uri: str) -> bytes:
    """The encoded image behind a URI of a listing or an artifact.

    `table.parquet#17` or `table.parquet#17@column` is a row of a table, `file.tar#name@offset+size` a member of a tar,
    `clip.mp4#t=12.5` a frame; http and https addresses are fetched.

    Raises:
        OSError: it cannot be read.
        StoreUnavailable: its store does not answer.
    """
    try:
        if (owner := owner_of(uri)) is not None:
            return owner.read(uri, MAX_BYTES)
        if web.is_web(uri):
            return web.fetch(uri, MAX_BYTES)
        require_file(uri)
        if is_container(uri):
            raise OSError(_why_no_image(uri))
        return storage.read_bytes(uri, MAX_BYTES)
    except StoreUnavailable:
        raise
    except (RecoError, ValueError) as error:
        raise OSError(reason(error)) from error


def _why_no_image(uri: str) -> str:
    """Why a container stands in a listing of images: it could not be opened, or breaks off."""
    container = container_of(uri)
    if container is not None and container.KIND != "video":
        for _, found in read_members(uri, -1, 1.0):
            if isinstance(found, OSError):
                return reason(found)
    return "damaged, or not listed by its images"
