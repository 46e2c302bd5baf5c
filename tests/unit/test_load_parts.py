"""What the loaders of the embed stage make of a container, also of one that changed between two runs."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encoded, photograph

from reco_ray.corpus.generations import pending_units, record_generation
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.load_parts import LoadParts

DATA = [encoded(photograph(number)) for number in range(5)]
WHOLE = {"00000000-00000": 2, "00000000-00001": 2, "00000000-00002-last": 1}


@pytest.fixture
def embed(tmp_path):
    """(parts that are committed, what the table holds now) -> the parts that are loaded: name -> URIs and reasons."""
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"bytes": DATA}), table)
    out = str(tmp_path / "out")
    found = list_files(str(table))
    generations = [record_generation(out, found, found.table, [], 2)]
    load = LoadParts(
        out, generations, np.asarray, short_side=32, max_pixels=10**6, part_size=2, frames_per_second=1
    )

    def run(committed: list[str], data: list[bytes] = DATA) -> dict[str, list[tuple[str, str | None]]]:
        pq.write_table(pa.table({"bytes": data}), table)
        loaded = {
            name: [(row["uri"].removeprefix(str(table)), row["reason"]) for row in rows.to_pylist()]
            for unit in pending_units(generations, committed, 2)
            for name, rows in load(unit)
        }
        assert pending_units(generations, [*committed, *loaded], 2) == []
        return loaded

    return run


@pytest.mark.parametrize("committed", [[], list(WHOLE)[:1], list(WHOLE)[1:], list(WHOLE)[::2], list(WHOLE)])
def test_only_what_is_missing_is_loaded(embed, committed):
    loaded = embed(committed)
    assert {name: len(rows) for name, rows in loaded.items()} == {
        name: count for name, count in WHOLE.items() if name not in committed
    }
    assert all(reason is None for rows in loaded.values() for _, reason in rows)


@pytest.mark.parametrize(
    ("committed", "loaded"),
    [
        ([], ["00000000-00000-last"]),
        (["00000000-00000"], ["00000000-00001-last"]),
        (["00000000-00001"], ["00000000-00000", "00000000-00002-last"]),
        (["00000000-00000", "00000000-00002-last"], ["00000000-00001"]),
    ],
)
def test_a_container_that_changed_is_rejected_once_or_twice_and_then_done(embed, committed, loaded):
    """Once for itself, and once more where it ends before something that is committed."""
    found = embed(committed, DATA[:1])
    assert sorted(found) == loaded
    rejected = [row for rows in found.values() for row in rows]
    assert 1 <= len(rejected) <= 2
    assert {uri for uri, _ in rejected} == {""}
    assert all(reason.startswith("cannot be read: changed since it was listed") for _, reason in rejected)
