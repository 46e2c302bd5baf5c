"""The end of an embed run: marks copies in different parts as duplicates, and counts all rows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.corpus.containers import is_container
from reco_ray.corpus.generations import shard_of
from reco_ray.files import storage
from reco_ray.files.read_ahead import prefetched

DUPLICATES_SCHEMA = pa.schema([("uri", pa.string()), ("duplicate_of", pa.string())])
IMAGES_KEY = b"reco_images"  # in the metadata of a part's schema: the images it was made of
_THREADS = 16
ACROSS = "across-"


@dataclass(frozen=True)
class Counts:
    """Row counts of an artifact.

    images: sum of the parts' own counts; must equal embedded + rejected + duplicates.
    containers: rejected containers, whose number of images may differ from the listing.
    """

    images: int
    embedded: int
    rejected: int
    duplicates: int
    containers: int
    reasons: dict[str, int]


def finish_embeddings(out: str, first_shard: int) -> Counts:
    """Removes copies of images in other parts, keeping the first, and counts all rows.

    Args:
        out: an embeddings artifact with all parts committed.
        first_shard: parts of earlier shards are already finished; they are read, not changed.
    """
    names = storage.list_names(storage.join(out, "embeddings"), ".parquet")
    remove_strays(out, names)
    files = [storage.join(out, "embeddings", name) for name in names]
    found = list(prefetched(_keys, files, _THREADS, 4 * _THREADS))
    keys = [part_keys for part_keys, _ in found]
    ordered = np.sort(np.concatenate([*keys, np.zeros(0, np.uint64)]))
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    embedded = len(ordered)
    if len(repeated):
        concerned = [n for n, k in zip(names, keys, strict=True) if np.isin(k, repeated).any()]
        embedded -= _drop_repeated(out, concerned, first_shard)
    reasons, containers = rejected_so_far(out)
    duplicates = sum(prefetched(storage.count_rows, _files(out, "duplicates"), _THREADS, 4 * _THREADS))
    return Counts(
        images=sum(images for _, images in found),
        embedded=embedded,
        rejected=reasons.total(),
        duplicates=duplicates,
        containers=containers,
        reasons=dict(reasons.most_common()),
    )


def count_reasons(reasons: Iterable[str]) -> Counter[str]:
    """Counts reasons by kind, the text before the colon, such as "damaged"."""
    return Counter(reason.partition(":")[0] for reason in reasons)


def rejected_so_far(out: str) -> tuple[Counter[str], int]:
    """Counts of rejected rows by kind of reason, and the number of containers among them."""
    total, containers = Counter[str](), 0
    for table in prefetched(storage.read_table, _files(out, "rejected"), _THREADS, 4 * _THREADS):
        total.update(count_reasons(table["reason"].to_pylist()))
        containers += sum(map(is_container, table["uri"].to_pylist()))
    return total, containers


def _files(out: str, folder: str) -> list[str]:
    uri = storage.join(out, folder)
    return [storage.join(uri, name) for name in storage.list_names(uri, ".parquet")]


def remove_strays(out: str, committed: list[str]) -> None:
    """Removes rejected rows and duplicates of uncommitted parts, left by killed runs whose container has changed."""
    there = set(committed)
    for folder in ("rejected", "duplicates"):
        for name in storage.list_names(storage.join(out, folder), ".parquet"):
            if name.removeprefix(ACROSS) not in there:
                storage.remove(storage.join(out, folder, name))


def _keys(file: str) -> tuple[np.ndarray, int]:
    """The first 64 bits of each image id (800 MB for 100 million; equal keys are compared in full), and the number of
    images of the part."""
    table = storage.read_table(file, ["image_id"])
    ids = pc.utf8_slice_codeunits(table["image_id"], 0, 16)
    keys = np.frombuffer(bytes.fromhex("".join(ids.to_pylist())), ">u8").astype(np.uint64)
    return keys, int(table.schema.metadata[IMAGES_KEY])


def _drop_repeated(out: str, names: list[str], first_shard: int) -> int:
    """Keeps the first row of each content; returns the number of removed rows."""
    seen: dict[str, str] = {}
    dropped = 0
    for name in names:
        file = storage.join(out, "embeddings", name)
        ids = storage.read_table(file, ["image_id", "uri"]).to_pylist()
        first = {row["uri"]: seen[row["image_id"]] for row in ids if row["image_id"] in seen}
        if first and shard_of(name) >= first_shard:
            # Duplicates are written before rows are removed: after a kill in between, the next run repeats this.
            _point_at_first(storage.join(out, "duplicates", name), first)
            rows = [{"uri": uri, "duplicate_of": kept} for uri, kept in first.items()]
            storage.write_table(
                storage.join(out, "duplicates", f"{ACROSS}{name}"),
                pa.Table.from_pylist(rows, DUPLICATES_SCHEMA),
            )
            new = pa.array([row["image_id"] not in seen for row in ids])
            storage.write_table(file, storage.read_table(file).filter(new))
            dropped += len(first)
        for row in ids:
            seen.setdefault(row["image_id"], row["uri"])
    return dropped


def _point_at_first(file: str, first: dict[str, str]) -> None:
    """Redirects a part's duplicates of removed images to the images that are kept."""
    if storage.exists(file):
        rows = storage.read_table(file).to_pylist()
        rows = [{**row, "duplicate_of": first.get(row["duplicate_of"], row["duplicate_of"])} for row in rows]
        storage.write_table(file, pa.Table.from_pylist(rows, DUPLICATES_SCHEMA))
