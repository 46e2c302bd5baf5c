"""The containers among the files of a source that say how many images they hold, such as tables: they are counted, and
those that name images elsewhere are told apart."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.corpus.columns import NoImageColumn
from reco_ray.corpus.containers import CountedContainer, ReadOptions, container_of, containers, name_pattern
from reco_ray.corpus.left_out import Kind, LeftOut
from reco_ray.corpus.walk import require_file
from reco_ray.errors import RecoError, file_error, reason
from reco_ray.files.read_ahead import prefetched
from reco_ray.files.retries import StoreUnavailable


def open_containers(
    files: pa.Table, left_out: LeftOut, image_column: str | None, *, strict: bool
) -> tuple[pa.Table, list[str]]:
    """Counts the images in containers that say it, and takes out those that name images elsewhere.

    Args:
        files: `listing.SCHEMA`.
        left_out: counts the tables that are left out.
        image_column: as `list_files`.
        strict: the user named each: one that is no table of images is an error. Otherwise one that cannot be read
            stays, to be rejected later, and one without images is left out.

    Returns:
        The files that are left, and the tables of addresses, in order.

    Raises:
        RecoError: if `strict`, or if there is nothing else.
    """
    counting = tuple(each for each in containers() if isinstance(each, CountedContainer))
    places = pc.indices_nonzero(pc.match_substring_regex(files["uri"], name_pattern(counting))).to_numpy()
    names = files["uri"].take(pa.array(places)).to_pylist()
    if not names:
        return files, []
    images = files["images"].to_numpy().copy()
    kept = np.ones(files.num_rows, bool)
    addresses, useless = [], list[RecoError]()
    options = ReadOptions(image_column=image_column)
    counted = prefetched(lambda name: _count(name, options), names)
    for place, name, found in zip(places, names, counted, strict=True):
        if isinstance(found, RecoError):
            if strict or files.num_rows == 1:
                raise found
            if isinstance(found, NoImageColumn):
                kept[place] = False
                useless.append(found)
                left_out.add(Kind.TABLES, name.rpartition("/")[2])
        elif found is None:
            kept[place] = False
            addresses.append(name)
        else:
            images[place] = found
    if useless and not addresses and not kept.any():
        raise useless[0]
    files = files.set_column(2, "images", pa.array(images)).filter(pa.array(kept))
    described = _described(files, addresses)
    for name in sorted(described):
        left_out.add(Kind.ADDRESSES, name.rpartition("/")[2])
    return files, [name for name in addresses if name not in described]


def read_uris(uri: str, image_column: str | None) -> Iterator[str]:
    """The images that a container names elsewhere, of those that `open_containers` tells apart."""
    return _counted(uri).read_uris(uri, ReadOptions(image_column=image_column))


def _counted(uri: str) -> CountedContainer:
    container = container_of(uri)
    assert isinstance(container, CountedContainer), uri
    return container


def _count(uri: str, options: ReadOptions) -> int | RecoError | None:
    try:
        require_file(uri)
        return _counted(uri).count(uri, options)
    except StoreUnavailable:
        raise
    except RecoError as error:
        return error
    except OSError as error:
        return file_error(f"{uri}: {reason(error)}", error)


def _described(files: pa.Table, addresses: list[str]) -> set[str]:
    """The tables of addresses that describe what lies beside them: an archive of the same name, or a folder of images.

    img2dataset writes them, with every image's address: it would be fetched a second time.
    """
    if not addresses:
        return set()
    archives = name_pattern(tuple(each for each in containers() if each.KIND == "archive"))
    beside = files["uri"].filter(pc.match_substring_regex(files["uri"], archives)).to_pylist()
    stems = {_stem(uri).rpartition("/")[2] for uri in beside}
    folders = set[str]()
    for chunk in files["uri"].chunks:
        folders.update(pc.unique(pc.replace_substring_regex(chunk, "/[^/]*$", "")).to_pylist())
    return {name for name in addresses if _stem(name).rpartition("/")[2] in stems or _stem(name) in folders}


def _stem(uri: str) -> str:
    return uri.rpartition(".")[0]
