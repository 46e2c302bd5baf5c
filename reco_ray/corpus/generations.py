"""The recorded listing of the source, cut into shards.

Each listing of the source is a generation of the artifact: `listing/<generation>-<file>.parquet`, in which each row
group is a shard, and `listing/<generation>.json`, written last. A resumed run reads the shards from there, so that
changes of the source do not affect it. Rows of earlier generations that the source no longer has are in
`listing/<generation>-gone.parquet`, if `reco-ray run` made the generation.
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus.containers import container_pattern, is_container
from reco_ray.corpus.listing import SCHEMA, UNKNOWN, Listing
from reco_ray.errors import UnreadableError, reason
from reco_ray.files import storage

GONE_SCHEMA = SCHEMA.append(pa.field("shard", pa.int64()))  # shard: of the recorded row
_FOLDER = "listing"
_SHARDS_A_FILE = 1024
_MOST_UNITS = 2048  # per kind; each is an object in the cluster's store, and is repeated after a node is lost


@dataclass(frozen=True)
class Generation:
    """One listing of the source.

    first_shard, shards: the added shards.
    files: number of added image files.
    inside: number of images in added containers, -1 if unknown.
    source: fingerprint of the whole listing.
    web: whether some images are http or https addresses.
    left_out: counts of files that were not taken, by kind.
    gone: number of removed rows of earlier generations; gone_images: of images in them, -1 if unknown.
    """

    number: int
    first_shard: int
    shards: int
    files: int
    inside: int
    source: str
    web: bool = False
    left_out: dict[str, int] = field(default_factory=dict)
    gone: int = 0
    gone_images: int = 0

    @property
    def key(self) -> tuple[str | int, ...]:
        """Identifies the generation, also among others of the same number."""
        return self.source, self.first_shard, self.shards, self.files, self.gone

    @property
    def images(self) -> int | None:
        """Change in the number of images since the previous generation; None if unknown."""
        unknown = UNKNOWN in (self.inside, self.gone_images)
        return None if unknown else self.files + self.inside - self.gone_images


def read_generations(out: str) -> list[Generation]:
    """Reads all completely recorded generations, in order."""
    names = storage.list_names(storage.join(out, _FOLDER), ".json")
    found = []
    for name in names:
        file = storage.join(out, _FOLDER, name)
        try:
            found.append(Generation(**json.loads(storage.read_bytes(file))))
        except (OSError, ValueError, TypeError) as error:
            raise UnreadableError(f"{file}: damaged: delete {out} and run again") from error
    return found


def record_generation(
    out: str,
    found: Listing,
    new: pa.Table,
    before: list[Generation],
    shard_size: int,
    gone: pa.Table | None = None,
) -> Generation:
    """Records a listing of the source.

    Args:
        out: URI of the artifact.
        found: the whole listing.
        new: its rows that no earlier generation has.
        before: earlier generations.
        shard_size: images per shard.
        gone: rows of `read_recorded` that the source no longer has.
    """
    inside = pc.match_substring_regex(new["uri"], container_pattern())
    files, containers = new.filter(pc.invert(inside)), new.filter(inside)
    shards = [files.slice(start, shard_size) for start in range(0, files.num_rows, shard_size)]
    shards += [containers.slice(row, 1) for row in range(containers.num_rows)]
    number = len(before) + 1
    for file, first in enumerate(range(0, len(shards), _SHARDS_A_FILE)):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
            for shard in shards[first : first + _SHARDS_A_FILE]:
                writer.write_table(shard.combine_chunks(), row_group_size=shard_size)
        storage.write_bytes(_file(out, number, file), sink.getvalue().to_pybytes())
    gone = GONE_SCHEMA.empty_table() if gone is None else gone.select(GONE_SCHEMA.names).cast(GONE_SCHEMA)
    if gone.num_rows:
        storage.write_table(_gone_file(out, number), gone)
    else:
        storage.remove(_gone_file(out, number))  # of a record that was killed before its last file
    generation = Generation(
        number=number,
        first_shard=sum(generation.shards for generation in before),
        shards=len(shards),
        files=files.num_rows,
        inside=_sum_known(containers["images"]),
        source=found.fingerprint,
        web=bool(pc.any(pc.match_substring_regex(new["uri"], "^https?://")).as_py()),
        left_out=found.left_out,
        gone=gone.num_rows,
        gone_images=_sum_known(gone["images"]),
    )
    marker = storage.join(out, _FOLDER, f"{number:04d}.json")
    storage.write_bytes(marker, json.dumps(asdict(generation), indent=2).encode())
    return generation


def _sum_known(images: pa.ChunkedArray) -> int:
    """The sum of a column `images`, UNKNOWN if one of them is."""
    return UNKNOWN if pc.any(pc.equal(images, UNKNOWN)).as_py() else pc.sum(images).as_py() or 0


def read_shard(out: str, generations: Sequence[Generation], shard: int) -> pa.Table:
    """The rows of a shard, without those removed since."""
    for generation in generations:
        place = shard - generation.first_shard
        if 0 <= place < generation.shards:
            uri = _file(out, generation.number, place // _SHARDS_A_FILE)
            rows = _open(uri, generation.key).read_row_group(place % _SHARDS_A_FILE)
            for later in generations:
                if later.gone and later.number > generation.number:
                    gone = read_gone(out, later)
                    gone = gone.filter(pc.equal(gone["shard"], shard))
                    rows = rows.filter(pc.invert(pc.is_in(rows["uri"], gone["uri"].combine_chunks())))
            return rows
    raise ValueError(f"no generation has shard {shard}")


def read_recorded(out: str, generations: Sequence[Generation]) -> pa.Table:
    """The rows of all generations that were not removed since, with their `shard`: GONE_SCHEMA."""
    found = GONE_SCHEMA.empty_table()
    for generation in generations:
        if generation.gone:
            gone = read_gone(out, generation).select(["uri", "shard"])
            found = found.join(gone, ["uri", "shard"], join_type="left anti")
        tables = []
        for file in range(-(-generation.shards // _SHARDS_A_FILE)):
            opened = _open(_file(out, generation.number, file), generation.key)
            groups = list(opened.row_groups())
            rows = [group.num_rows for group in groups]
            first = generation.first_shard + file * _SHARDS_A_FILE
            shards = pa.array(np.repeat(np.arange(first, first + len(rows)), rows), pa.int64())
            tables.append(pa.concat_tables(groups).append_column("shard", shards))
        found = pa.concat_tables([found, *tables])
    return found


def read_gone(out: str, generation: Generation) -> pa.Table:
    """The rows of earlier generations that a generation removed: GONE_SCHEMA."""
    if not generation.gone:
        return GONE_SCHEMA.empty_table()
    return _read_gone(_gone_file(out, generation.number), generation.key)


def gone_containers(out: str, generations: Iterable[Generation]) -> frozenset[int]:
    """The shards of containers that the source no longer has."""
    tables = [read_gone(out, generation) for generation in generations if generation.gone]
    return frozenset(
        shard
        for table in tables
        for shard in table.filter(pc.match_substring_regex(table["uri"], container_pattern()))[
            "shard"
        ].to_pylist()
    )


def _file(out: str, generation: int, file: int) -> str:
    return storage.join(out, _FOLDER, f"{generation:04d}-{file:06d}.parquet")


def _gone_file(out: str, generation: int) -> str:
    return storage.join(out, _FOLDER, f"{generation:04d}-gone.parquet")


# The key of the generation is part of the cache key, as a file may be replaced.


@lru_cache(maxsize=4)
def _read_gone(uri: str, key: tuple[str | int, ...]) -> pa.Table:
    return storage.read_table(uri)


@lru_cache(maxsize=2)
def _open(uri: str, key: tuple[str | int, ...]) -> storage.ParquetReader:
    try:
        return storage.ParquetReader(uri)
    except pa.ArrowInvalid as error:
        raise UnreadableError(f"{uri}: damaged: {reason(error)}") from error


# --- parts: the units of commit ------------------------------------------------------------------------------

# A shard of files is one part. A container is a stream, whose number of parts is known at its end.
_PART = re.compile(r"(?P<shard>\d{8,})(-(?P<part>\d{5,})(?P<last>-last)?)?")


def part_name(shard: int, part: int | None = None, last: bool = False) -> str:
    """The name of a part's files: "00000012", or "00000013-00004" and at the end "00000013-00005-last"."""
    return f"{shard:08d}" + ("" if part is None else f"-{part:05d}{'-last' if last else ''}")


def shard_of(name: str) -> int:
    """The shard that a part's file belongs to."""
    return int(name.partition("-")[0].partition(".")[0])


def embedding_files(uri: str, content: EmbeddingsContent) -> list[str]:
    """URIs of the tables of a finished embeddings artifact, in order, without those of a run in progress."""
    folder = storage.join(uri, "embeddings")
    names = storage.list_names(folder, ".parquet")
    return [storage.join(folder, name) for name in names if shard_of(name) < content.shards]


def pending_units(
    generations: Iterable[Generation],
    committed: Iterable[str],
    shard_size: int,
    without: Collection[int] = (),
) -> list[pa.Table]:
    """The shards that are not committed yet, grouped into units of work.

    Args:
        generations: recorded ones.
        committed: names of the committed parts.
        shard_size: images per shard.
        without: shards to skip.

    Returns:
        Tables of `shard`, `done` (committed parts of a container) and `end` (number of its last part, if committed). A
        unit has one shard unless there are thousands, and either files or containers.
    """
    parts: dict[int, set[int]] = {}
    ends: dict[int, int] = {}
    whole = set()
    for match in filter(None, map(_PART.fullmatch, committed)):
        shard = int(match["shard"])
        if match["part"] is None:
            whole.add(shard)
            continue
        parts.setdefault(shard, set()).add(int(match["part"]))
        if match["last"]:
            ends[shard] = int(match["part"])
    units = []
    for generation in generations:
        of_files = -(-generation.files // shard_size)
        start, middle = generation.first_shard, generation.first_shard + of_files
        end = generation.first_shard + generation.shards
        files = [shard for shard in range(start, middle) if shard not in whole]
        containers = [
            shard
            for shard in range(middle, end)
            if shard not in without and (shard not in ends or not parts[shard].issuperset(range(ends[shard])))
        ]
        for shards in (files, containers):
            size = -(-len(shards) // _MOST_UNITS) or 1
            for first in range(0, len(shards), size):
                group = shards[first : first + size]
                done = pa.array([sorted(parts.get(shard, ())) for shard in group], pa.list_(pa.int64()))
                end = pa.array([ends.get(shard) for shard in group], pa.int64())
                units.append(pa.table({"shard": pa.array(group, pa.int64()), "done": done, "end": end}))
    return units


def holds_container(rows: pa.Table) -> bool:
    """Whether a shard is one container rather than files."""
    return rows.num_rows == 1 and is_container(rows["uri"][0].as_py())
