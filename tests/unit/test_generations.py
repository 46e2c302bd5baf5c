"""The listing that is written down, its shards, and what is left of them."""

import pyarrow as pa
import pytest

from reco_ray.corpus.generations import (
    part_name,
    pending_units,
    read_generations,
    read_recorded,
    read_shard,
    record_generation,
    shard_of,
)
from reco_ray.corpus.listing import Listing, fingerprint
from reco_ray.errors import RecoError


def listing(files: int, tars: int = 0, start: int = 0) -> Listing:
    uris = [f"/c/{n:05d}.jpg" for n in range(start, start + files)]
    uris += [f"/c/{n:05d}.tar" for n in range(start, start + tars)]
    table = pa.table(
        {"uri": uris, "size": pa.array(range(len(uris)), pa.int64()), "images": [1] * files + [-1] * tars}
    )
    return Listing(table, "/c", fingerprint(table))


def pending(generations, committed, shard_size):
    units = pending_units(generations, committed, shard_size)
    return [row for unit in units for row in unit.to_pylist()]


def test_what_is_recorded_is_read_back_by_shard(tmp_path):
    found = listing(2500, 3)
    generation = record_generation(str(tmp_path), found, found.table, [], 2)  # more shards than a file takes
    assert read_generations(str(tmp_path)) == [generation]
    assert (generation.shards, generation.files, generation.images) == (1253, 2500, None)
    assert len(list((tmp_path / "listing").glob("*.parquet"))) == 2
    for shard in (0, 1, 1023, 1024, 1249):
        rows = read_shard(str(tmp_path), [generation], shard)
        assert rows["uri"].to_pylist() == [f"/c/{2 * shard + n:05d}.jpg" for n in range(2)]
    assert read_shard(str(tmp_path), [generation], 1252)["uri"].to_pylist() == ["/c/00002.tar"]
    assert read_recorded(str(tmp_path), [generation]).num_rows == 2503


def test_generations_go_on_counting_shards(tmp_path):
    first, second = listing(5), listing(3, 1, start=10)
    generations = [record_generation(str(tmp_path), first, first.table, [], 2)]
    generations.append(record_generation(str(tmp_path), second, second.table, generations, 2))
    assert [(g.number, g.first_shard, g.shards) for g in generations] == [(1, 0, 3), (2, 3, 3)]
    assert generations[0].images == 5
    assert read_generations(str(tmp_path)) == generations
    assert read_shard(str(tmp_path), generations, 3)["uri"].to_pylist() == ["/c/00010.jpg", "/c/00011.jpg"]
    assert [row["shard"] for row in pending(generations, ["00000001", "00000004"], 2)] == [0, 2, 3, 5]


def test_a_listing_without_its_last_file_does_not_count(tmp_path):
    found = listing(5)
    record_generation(str(tmp_path), found, found.table, [], 2)
    (tmp_path / "listing" / "0001.json").unlink()
    assert read_generations(str(tmp_path)) == []
    (tmp_path / "listing" / "0001.json").write_text("{}")
    with pytest.raises(RecoError, match=r"0001\.json: damaged: delete .* and run again"):
        read_generations(str(tmp_path))


def test_a_container_is_done_when_all_its_parts_are(tmp_path):
    found = listing(2, 2)
    generations = [record_generation(str(tmp_path), found, found.table, [], 2)]
    first, second = part_name(1, 0), part_name(1, 1)
    end = part_name(1, 2, last=True)
    assert (first, end) == ("00000001-00000", "00000001-00002-last")
    assert [shard_of(f"{name}.parquet") for name in (part_name(7), first, end)] == [7, 1, 1]
    left = {0: [], 1: [], 2: []}
    assert {row["shard"]: row["done"] for row in pending(generations, [], 2)} == left
    rows = pending(generations, [first, end, "00000000", "00000001-00001.tmp"], 2)
    assert rows == [{"shard": 1, "done": [0, 2], "end": 2}, {"shard": 2, "done": [], "end": None}]
    assert [row["shard"] for row in pending(generations, [first, second, end], 2)] == [0, 2]


def test_units_are_some_thousands_however_long_the_corpus(tmp_path):
    found = listing(10_000)
    generations = [record_generation(str(tmp_path), found, found.table, [], 1)]
    units = pending_units(generations, [], 1)
    assert len(units) <= 2048
    assert [row["shard"] for unit in units for row in unit.to_pylist()] == list(range(10_000))
