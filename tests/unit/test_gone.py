"""Images that have gone leave the tables of the embeddings; copies of them take their places. Also after kills."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from reco_ray.corpus.finish import DUPLICATES_SCHEMA, IMAGES_KEY, finish_embeddings
from reco_ray.corpus.generations import (
    gone_containers,
    pending_units,
    read_generations,
    read_recorded,
    read_shard,
    record_generation,
)
from reco_ray.corpus.gone import drop_gone
from reco_ray.corpus.listing import Listing, fingerprint
from reco_ray.corpus.stage import REJECTED_SCHEMA, embeddings_schema
from reco_ray.corpus.update import added_rows, removed_rows
from reco_ray.files import storage

# A content for every file; the same letter is the same bytes. "!" cannot be read.
FIRST = {"a1": "A", "a2": "A", "b1": "B", "a3": "A", "c1": "C", "bad": "!", "b2": "B", "d1": "D", "a4": "A"}
PART = 2


class Killed(Exception):
    pass


def listing(files: dict[str, str]) -> Listing:
    names = [f"/c/{name}.jpg" for name in files]
    sizes = [ord(content) for content in files.values()]
    table = pa.table({"uri": names, "size": pa.array(sizes, pa.int64()), "images": [1] * len(files)})
    return Listing(table, "/c", fingerprint(table))


def commit(out: str, generations, files: dict[str, str]) -> None:
    """What the workers do: the parts that are pending, each without the copies in it."""
    for unit in pending_units(generations, _committed(out), PART, gone_containers(out, generations)):
        for shard in unit["shard"].to_pylist():
            uris = read_shard(out, generations, shard)["uri"].to_pylist()
            write_part(out, f"{shard:08d}", {uri: files[Path(uri).stem] for uri in uris})


def write_part(out: str, name: str, contents: dict[str, str]) -> None:
    kept: dict[str, str] = {}
    duplicates, rejected = [], []
    for uri, content in contents.items():
        if content == "!":
            rejected.append({"uri": uri, "reason": "damaged"})
        elif content in kept:
            duplicates.append({"uri": uri, "duplicate_of": kept[content]})
        else:
            kept[content] = uri
    for folder, rows, schema in (
        ("duplicates", duplicates, DUPLICATES_SCHEMA),
        ("rejected", rejected, REJECTED_SCHEMA),
    ):
        if rows:
            storage.write_table(f"{out}/{folder}/{name}.parquet", pa.Table.from_pylist(rows, schema))
    rows = [
        {
            "image_id": hashlib.sha256(content.encode()).hexdigest(),
            "uri": uri,
            "width": 1,
            "height": 1,
            "embedding": np.full(2, ord(content), np.float16),
        }
        for content, uri in kept.items()
    ]
    table = pa.Table.from_pylist(rows, embeddings_schema(2))
    table = table.replace_schema_metadata({IMAGES_KEY: str(len(contents))})
    storage.write_table(f"{out}/embeddings/{name}.parquet", table)


def _committed(out: str) -> list[str]:
    return [name.removesuffix(".parquet") for name in storage.list_names(f"{out}/embeddings", ".parquet")]


def begin(out: str, files: dict[str, str]) -> None:
    found = listing(files)
    commit(out, [record_generation(out, found, found.table, [], PART)], files)
    finish_embeddings(out, 0)


def follow(out: str, files: dict[str, str]) -> None:
    """What a run does when the source has changed."""
    generations = read_generations(out)
    found = listing(files)
    if found.fingerprint != generations[-1].source:
        recorded = read_recorded(out, generations)
        new, gone = added_rows(found, recorded), removed_rows(found, recorded)
        generations.append(record_generation(out, found, new, generations, PART, gone))
    drop_gone(out, generations)
    commit(out, generations, files)
    check(out, files, finish_embeddings(out, 0))
    assert sum(g.images or 0 for g in generations) == len(files)


def check(out: str, files: dict[str, str], counts) -> None:
    """Every file has its one place, every content one embedding, and the counts say so."""
    embedded = storage.read_table(f"{out}/embeddings").to_pylist()
    stem = {row["uri"]: Path(row["uri"]).stem for row in embedded}
    by_content = {files[stem[row["uri"]]]: row["uri"] for row in embedded}
    assert set(by_content) == set(files.values()) - {"!"}
    assert len(embedded) == len(by_content)
    for row in embedded:
        content = files[stem[row["uri"]]]
        assert row["image_id"] == hashlib.sha256(content.encode()).hexdigest()
        assert row["embedding"] == [ord(content)] * 2
    duplicates = rows(out, "duplicates")
    for row in duplicates:
        assert by_content[files[Path(row["uri"]).stem]] == row["duplicate_of"]
    rejected = rows(out, "rejected")
    places = [row["uri"] for row in [*embedded, *duplicates, *rejected]]
    assert sorted(places) == sorted(f"/c/{name}.jpg" for name in files)
    assert (counts.images, counts.embedded) == (len(files), len(embedded))
    assert (counts.duplicates, counts.rejected) == (len(duplicates), len(rejected))


def rows(out: str, folder: str) -> list[dict[str, str]]:
    names = storage.list_names(f"{out}/{folder}", ".parquet")
    return storage.read_table(f"{out}/{folder}").to_pylist() if names else []


CHANGES = {
    "an original": {k: v for k, v in FIRST.items() if k != "a1"},
    "an original and its first copies": {k: v for k, v in FIRST.items() if k not in ("a1", "a2", "b1")},
    "a copy": {k: v for k, v in FIRST.items() if k != "a3"},
    "all of one content": {k: v for k, v in FIRST.items() if v != "A"},
    "a rejected file": {k: v for k, v in FIRST.items() if v != "!"},
    "a whole part and more": {k: v for k, v in FIRST.items() if k not in ("a1", "a2", "c1")},
    "renamed": {("x" + k if v == "A" else k): v for k, v in FIRST.items()},
    "replaced": {k: ("E" if k == "a1" else v) for k, v in FIRST.items()},
    "replaced by the content of another": {k: ("D" if k == "a1" else v) for k, v in FIRST.items()},
    "mended and broken": {k: {"!": "F", "C": "!"}.get(v, v) for k, v in FIRST.items()},
    "nothing is left": {"z1": "Z"},
    "more": FIRST | {"a0": "A", "g1": "G"},
}


@pytest.mark.parametrize("files", CHANGES.values(), ids=CHANGES)
def test_what_has_gone_leaves_the_tables(tmp_path, files):
    out = str(tmp_path)
    begin(out, FIRST)
    check(out, FIRST, finish_embeddings(out, 0))
    follow(out, files)
    follow(out, FIRST)  # and back
    follow(out, files)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The embeddings of FIRST."""
    out = tmp_path_factory.mktemp("begun")
    begin(str(out), FIRST)
    return out


@pytest.mark.parametrize("files", CHANGES.values(), ids=CHANGES)
def test_killed_after_any_write_it_goes_on(begun, tmp_path, monkeypatch, files):
    """After every single file that is written or deleted; the next run may also find another source."""
    write, remove = storage.write_bytes, storage.remove
    for after in range(60):
        for then in (files, FIRST):
            out = str(tmp_path / f"{after}-{then is files}")
            shutil.copytree(begun, out)
            left = [after]

            def killed_or(act, left=left):
                def acting(*arguments):
                    if not left[0]:
                        raise Killed
                    left[0] -= 1
                    return act(*arguments)

                return acting

            monkeypatch.setattr(storage, "write_bytes", killed_or(write))
            monkeypatch.setattr(storage, "remove", killed_or(remove))
            try:
                follow(out, files)
                done = True
            except Killed:
                done = False
            monkeypatch.setattr(storage, "write_bytes", write)
            monkeypatch.setattr(storage, "remove", remove)
            follow(out, then)
        if done:
            return
    raise AssertionError("60 writes were not enough")


def test_a_container_that_has_gone_takes_its_images_along(tmp_path):
    out = str(tmp_path)
    table = pa.table(
        {
            "uri": ["/c/x.jpg", "/c/1.tar", "/c/2.tar"],
            "size": pa.array([1, 2, 3], pa.int64()),
            "images": [1, -1, -1],
        }
    )
    found = Listing(table, "/c", fingerprint(table))
    generations = [record_generation(out, found, found.table, [], PART)]
    write_part(out, "00000000", {"/c/x.jpg": "X"})
    write_part(out, "00000001-00000", {"/c/1.tar#a.jpg@512+9": "A", "/c/1.tar#b#.jpg@1+9": "B"})
    write_part(out, "00000001-00001-last", {"/c/1.tar#c.jpg@9+9": "!", "/c/1.tar#x.jpg@9+8": "X"})
    write_part(out, "00000002-00000-last", {"/c/2.tar#a.jpg@512+9": "A", "/c/2.tar#d.jpg@7+9": "D"})
    assert finish_embeddings(out, 0).images == 7
    left = table.filter(pa.array([True, False, True]))
    after = Listing(left, "/c", fingerprint(left))
    gone = removed_rows(after, read_recorded(out, generations))
    generations.append(record_generation(out, after, left.slice(0, 0), generations, PART, gone))
    assert generations[-1].images is None
    drop_gone(out, generations)
    counts = finish_embeddings(out, 0)
    assert (counts.images, counts.embedded, counts.rejected, counts.duplicates) == (3, 3, 0, 0)
    uris = storage.read_table(f"{out}/embeddings")["uri"].to_pylist()
    assert sorted(uris) == ["/c/2.tar#a.jpg@512+9", "/c/2.tar#d.jpg@7+9", "/c/x.jpg"]
    committed = [name for name in _committed(out) if not name.startswith("00000001-00000")]
    assert pending_units(generations, committed, PART, gone_containers(out, generations)) == []
