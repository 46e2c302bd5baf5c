"""Updates an embeddings artifact to its source, for `reco-ray run`.

New images become a generation, as with `embed --follow`. Removed ones are recorded in it, and are deleted from the
tables before anything is embedded (`gone.py`). Embeddings of other models or settings are replaced.
"""

import re

import numpy as np
import pyarrow as pa

from reco_ray.corpus.generations import Generation, read_recorded, record_generation
from reco_ray.corpus.listing import Listing
from reco_ray.files import artifacts
from reco_ray.files.replacing import clear_outdated, print_status

_OWN = re.compile(
    r"listing/\d{4,}(\.json|-\d{6,}\.parquet|-gone\.parquet)"
    r"|(embeddings|rejected|duplicates)/(across-)?\d{8,}(-\d{5,})?(-last)?\.parquet"
)


def update(
    writer: artifacts.ArtifactWriter, found: Listing, generations: list[Generation], shard_size: int
) -> list[Generation]:
    """Records the images added and removed since the last generation, and prints their numbers.

    Args:
        writer: of the artifact.
        found: current listing of the source.
        generations: recorded ones.
        shard_size: images per shard.

    Returns:
        The valid generations; none if the artifact is replaced.

    Raises:
        RecoError: the directory has other content or unknown files.
    """
    stored = writer.stored()
    if stored is None:
        return []
    if {**stored, "corpus": None} != {**writer.made_from, "corpus": None}:
        clear_outdated(writer, "embed", lambda path: _OWN.fullmatch(path) is not None)
        return []
    if stored != writer.made_from:
        writer.begin()  # the same images may be listed by another folder, glob or list
    if not generations or found.fingerprint == generations[-1].source:
        return generations
    recorded = read_recorded(writer.uri, generations)
    new, gone = added_rows(found, recorded), removed_rows(found, recorded)
    if not new.num_rows and not gone.num_rows:
        return generations
    kept = recorded.num_rows - gone.num_rows
    print_status("embed", f"{new.num_rows:,} new, {gone.num_rows:,} gone or changed since, {kept:,} kept")
    if gone.num_rows:
        writer.begin()  # rows of the finished artifact will be deleted
    return [*generations, record_generation(writer.uri, found, new, generations, shard_size, gone)]


def added_rows(found: Listing, recorded: pa.Table) -> pa.Table:
    """The rows of the source that are not recorded (by URI and size), in its order."""
    place = pa.array(np.arange(found.table.num_rows))
    return (
        found.table.append_column("place", place)
        .join(recorded.select(["uri", "size"]), ["uri", "size"], join_type="left anti")
        .sort_by("place")
        .drop_columns(["place"])
    )


def removed_rows(found: Listing, recorded: pa.Table) -> pa.Table:
    """The recorded rows that the source no longer has, or has with another size."""
    return recorded.join(found.table.select(["uri", "size"]), ["uri", "size"], join_type="left anti")
