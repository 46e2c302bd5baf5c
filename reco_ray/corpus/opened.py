"""The tables among the files of a source, looked into: rows are counted, and addresses are read from those that name
images elsewhere."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.corpus import tables
from reco_ray.corpus.columns import NoImageColumn
from reco_ray.corpus.left_out import Kind, LeftOut
from reco_ray.corpus.walk import require_file
from reco_ray.errors import RecoError, file_error, reason
from reco_ray.files.read_ahead import prefetched
from reco_ray.files.retries import StoreUnavailable


def open_tables(
    files: pa.Table, left_out: LeftOut, image_column: str | None, *, strict: bool
) -> tuple[pa.Table, list[str]]:
    """Counts the images in Parquet files, and takes out those that name images elsewhere.

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
    places = pc.indices_nonzero(pc.ends_with(files["uri"], ".parquet", ignore_case=True)).to_numpy()
    names = files["uri"].take(pa.array(places)).to_pylist()
    if not names:
        return files, []
    images = files["images"].to_numpy().copy()
    kept = np.ones(files.num_rows, bool)
    addresses, useless = [], list[RecoError]()
    counted = prefetched(lambda name: _count_rows(name, image_column), names)
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


def _count_rows(uri: str, image_column: str | None) -> int | RecoError | None:
    try:
        require_file(uri)
        return tables.count_rows(uri, image_column)
    except StoreUnavailable:
        raise
    except RecoError as error:
        return error
    except OSError as error:
        return file_error(f"{uri}: {reason(error)}", error)


def _described(files: pa.Table, addresses: list[str]) -> set[str]:
    """The tables of addresses that describe what lies beside them: a tar of the same name, or a folder of images.

    img2dataset writes them, with every image's address: it would be fetched a second time.
    """
    if not addresses:
        return set()
    tars = files["uri"].filter(pc.ends_with(files["uri"], ".tar", ignore_case=True)).to_pylist()
    stems = {_stem(uri).rpartition("/")[2] for uri in tars}
    folders = set[str]()
    for chunk in files["uri"].chunks:
        folders.update(pc.unique(pc.replace_substring_regex(chunk, "/[^/]*$", "")).to_pylist())
    return {name for name in addresses if _stem(name).rpartition("/")[2] in stems or _stem(name) in folders}


def _stem(uri: str) -> str:
    return uri.rpartition(".")[0]
