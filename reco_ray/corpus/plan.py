"""What there is to embed, written down once: the source's listing, cut into shards.

Each look at the source is a generation of the artifact: `listing/<generation>-<file>.parquet`, in which every row group
is a shard, and `listing/<generation>.json`, written last. A run that goes on reads the shards from there, so it does
what the first run began, whatever has come or gone in the source since.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reco_ray import storage, stores
from reco_ray.corpus.kinds import CONTAINER_PATTERN, is_container
from reco_ray.corpus.listing import SCHEMA, UNKNOWN, Listing
from reco_ray.errors import RecoError, reason
from reco_ray.retries import retried

_FOLDER = "listing"
_SHARDS_A_FILE = 1024
_MOST_UNITS = (
    2048  # a kind; each is an object in the cluster's store, and what a lost node makes others repeat
)


@dataclass(frozen=True)
class Generation:
    """One look at the source.

    first_shard, shards: the shards that it added. files: images that are files of their own. inside: images in
    containers, -1 if only reading will tell. source: fingerprint of all that was there, not only of what was new.
    web: whether some are http or https addresses. left_out: what was there and was not taken, by kind.
    """

    number: int
    first_shard: int
    shards: int
    files: int
    inside: int
    source: str
    web: bool = False
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int | None:
        """How many images it added, None if not known yet."""
        return None if self.inside == UNKNOWN else self.files + self.inside


def read_generations(out: str) -> list[Generation]:
    """Those that are written down completely, in order."""
    names = storage.list_names(storage.join(out, _FOLDER), ".json")
    found = []
    for name in names:
        file = storage.join(out, _FOLDER, name)
        try:
            found.append(Generation(**json.loads(storage.read_bytes(file))))
        except (OSError, ValueError, TypeError) as error:
            raise RecoError(f"{file}: damaged: delete {out} and run again") from error
    return found


def record(out: str, found: Listing, new: pa.Table, before: list[Generation], shard_size: int) -> Generation:
    """Writes down a look at the source.

    Args:
        found: all that is there.
        new: the rows of it that no generation before has.
        before: the generations so far.
    """
    inside = pc.match_substring_regex(new["uri"], CONTAINER_PATTERN)
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
    counts = containers["images"]
    unknown = pc.any(pc.equal(counts, UNKNOWN)).as_py()
    generation = Generation(
        number=number,
        first_shard=sum(generation.shards for generation in before),
        shards=len(shards),
        files=files.num_rows,
        inside=UNKNOWN if unknown else pc.sum(counts).as_py() or 0,
        source=found.fingerprint,
        web=bool(pc.any(pc.match_substring_regex(new["uri"], "^https?://")).as_py()),
        left_out=found.left_out,
    )
    marker = storage.join(out, _FOLDER, f"{number:04d}.json")
    storage.write_bytes(marker, json.dumps(asdict(generation), indent=2).encode())
    return generation


def read_shard(out: str, generations: Iterable[Generation], shard: int) -> pa.Table:
    """A shard's rows of the listing."""
    for generation in generations:
        place = shard - generation.first_shard
        if 0 <= place < generation.shards:
            uri = _file(out, generation.number, place // _SHARDS_A_FILE)
            return _read_group(uri, place % _SHARDS_A_FILE)
    raise ValueError(f"no generation has shard {shard}")


def read_recorded(out: str, generations: Iterable[Generation]) -> pa.Table:
    """All rows of all generations."""
    files = [
        storage.read_table(_file(out, generation.number, file))
        for generation in generations
        for file in range(-(-generation.shards // _SHARDS_A_FILE))
    ]
    return pa.concat_tables(files) if files else SCHEMA.empty_table()


def _file(out: str, generation: int, file: int) -> str:
    return storage.join(out, _FOLDER, f"{generation:04d}-{file:06d}.parquet")


def _read_group(uri: str, group: int) -> pa.Table:
    return retried(lambda: _open(uri).read_row_group(group), uri)


@lru_cache(maxsize=2)
def _open(uri: str) -> pq.ParquetFile:
    filesystem, path = storage.resolve(uri)
    try:
        return pq.ParquetFile(stores.opened(filesystem, path))
    except pa.ArrowInvalid as error:
        raise RecoError(f"{uri}: damaged: {reason(error)}") from error


# --- parts: what is committed together ----------------------------------------------------------------------

# A shard of files is one part. A container is read as a stream, so how many parts it has shows at its end.
_PART = re.compile(r"(?P<shard>\d{8,})(-(?P<part>\d{5,})(?P<last>-last)?)?")


def part_name(shard: int, part: int | None = None, last: bool = False) -> str:
    """The name of a part's files: "00000012", or "00000013-00004" and at the end "00000013-00005-last"."""
    return f"{shard:08d}" + ("" if part is None else f"-{part:05d}{'-last' if last else ''}")


def shard_of(name: str) -> int:
    """The shard that a part's file belongs to."""
    return int(name.partition("-")[0].partition(".")[0])


def embedding_files(uri: str, manifest: storage.Manifest) -> list[str]:
    """URIs of the tables of a finished embeddings artifact, in order, without those of a run in progress.

    Raises:
        RecoError: an earlier version made it, whose files were laid out otherwise.
    """
    if "shards" not in manifest.content:
        raise RecoError(f"{uri}: was made by an earlier version ({manifest.made_by}): embed the corpus again")
    folder = storage.join(uri, "embeddings")
    names = storage.list_names(folder, ".parquet")
    return [storage.join(folder, name) for name in names if shard_of(name) < manifest.content["shards"]]


def pending_units(
    generations: Iterable[Generation], committed: Iterable[str], shard_size: int
) -> list[pa.Table]:
    """The shards that are not committed yet, grouped into units of work.

    Args:
        committed: names of the parts there are.

    Returns:
        Tables of `shard`, `done`: the parts of a container that are committed already, and `end`: the number of its
        last part, if that is one of them. A unit is one shard until there are thousands; a unit never mixes files and
        containers.
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
            if shard not in ends or not parts[shard].issuperset(range(ends[shard]))
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
