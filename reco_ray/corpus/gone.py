"""Images that have gone from a source leave its embeddings: their rows, their reasons, their places as duplicates.

Where a copy of a gone image is still there, the copy takes its place: image_id, size and embedding are the same.
Every step can be done again, so a run that was killed in the middle begins here anew.
"""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.corpus.containers import is_container
from reco_ray.corpus.finish import ACROSS, DUPLICATES_SCHEMA, IMAGES_KEY, remove_strays
from reco_ray.corpus.generations import Generation, read_gone, read_shard, shard_of
from reco_ray.files import storage
from reco_ray.files.read_ahead import prefetched

_THREADS = 16


def drop_gone(out: str, generations: Sequence[Generation]) -> None:
    """Takes what has gone out of the committed parts.

    Args:
        out: an embeddings artifact without a manifest. generations: all of it.
    """
    if any(generation.gone for generation in generations):
        # A part that was killed in mid-write may be made of fewer images now, without any to reject.
        remove_strays(out, storage.list_names(storage.join(out, "embeddings"), ".parquet"))
    for generation in generations:
        if generation.gone:
            _Drop(out, generations, generation).run()


class _Drop:
    """What one generation did not find any more leaves the parts of those before it.

    Parts of this generation and later ones may hold the same URI with other content.
    """

    def __init__(self, out: str, generations: Sequence[Generation], generation: Generation) -> None:
        self._out, self._generations, self._end = out, generations, generation.first_shard
        gone = read_gone(out, generation)
        self._shards = set(gone["shard"].to_pylist())
        self._uris = gone["uri"].combine_chunks()
        self._containers = frozenset(filter(is_container, gone["uri"].to_pylist()))

    def run(self) -> None:
        parts = storage.list_names(storage.join(self._out, "embeddings"), ".parquet")
        parts = [name for name in parts if shard_of(name) < self._end]
        affected = [name for name in parts if shard_of(name) in self._shards]
        copies = self._copies(set(parts))
        first: dict[str, tuple[str, str]] = {}  # gone URI -> its first copy that is still there, and the file
        for name, table in copies.items():
            for row in table.filter(pc.invert(self._gone(table["uri"]))).to_pylist():
                original = row["duplicate_of"]
                if self._is_gone(original) and (original not in first or row["uri"] < first[original][0]):
                    first[original] = row["uri"], name
        # In this order: a copy is named as one until its row is written, so that a later run finds it again.
        self._promote(affected, first)
        self._rename_originals(copies, {original: uri for original, (uri, _) in first.items()})
        for name in {name for _, name in first.values()}:
            rows = [
                row
                for row in storage.read_table(self._file("duplicates", name)).to_pylist()
                if first.get(row["duplicate_of"], ("",))[0] != row["uri"]
            ]
            self._write_duplicates(name, rows)
        for name in affected:
            self._shrink(name)

    def _copies(self, parts: set[str]) -> dict[str, pa.Table]:
        """The files of duplicates that name a gone image as the original, of committed parts."""
        names = storage.list_names(storage.join(self._out, "duplicates"), ".parquet")
        names = [name for name in names if name.removeprefix(ACROSS) in parts]
        files = [self._file("duplicates", name) for name in names]
        tables = prefetched(storage.read_table, files, _THREADS, 4 * _THREADS)
        found = zip(names, tables, strict=True)
        return {name: table for name, table in found if pc.any(self._gone(table["duplicate_of"])).as_py()}

    def _promote(self, affected: list[str], first: dict[str, tuple[str, str]]) -> None:
        """Adds the rows of gone images to the parts of their first copies, under the copies' URIs."""
        added: dict[str, list[pa.Table]] = {}
        files = [self._file("embeddings", name) for name in affected] if first else []
        for table in prefetched(storage.read_table, files, _THREADS, 4 * _THREADS):
            for row, uri in enumerate(table["uri"].to_pylist()):
                if uri in first:
                    copy, file = first[uri]
                    place = table.schema.get_field_index("uri")
                    promoted = table.slice(row, 1).set_column(place, "uri", pa.array([copy], pa.string()))
                    added.setdefault(file.removeprefix(ACROSS), []).append(promoted)
        for name, rows in added.items():
            table = storage.read_table(self._file("embeddings", name))
            there = set(table["uri"].to_pylist())
            rows = [row.cast(table.schema) for row in rows if row["uri"][0].as_py() not in there]
            if rows:
                whole = pa.concat_tables([table, *rows]).replace_schema_metadata(table.schema.metadata)
                storage.write_table(self._file("embeddings", name), whole)

    def _rename_originals(self, copies: dict[str, pa.Table], first: dict[str, str]) -> None:
        """All copies but the first become duplicates of the first."""
        for name, table in copies.items():
            rows = table.to_pylist()
            renamed = [
                {**row, "duplicate_of": first[row["duplicate_of"]]}
                if first.get(row["duplicate_of"], row["uri"]) != row["uri"]
                else row
                for row in rows
            ]
            if renamed != rows:
                self._write_duplicates(name, renamed)

    def _shrink(self, name: str) -> None:
        """Drops the gone rows of a part, and counts what it is made of now."""
        for each in (name, f"{ACROSS}{name}"):
            if storage.exists(file := self._file("duplicates", each)):
                table = storage.read_table(file)
                self._write_duplicates(each, table.filter(pc.invert(self._gone(table["uri"]))).to_pylist())
        if storage.exists(file := self._file("rejected", name)):
            table = storage.read_table(file)
            kept = table.filter(pc.invert(self._gone(table["uri"])))
            storage.write_table(file, kept) if kept.num_rows else storage.remove(file)
        table = storage.read_table(file := self._file("embeddings", name))
        kept = table.filter(pc.invert(self._gone(table["uri"])))
        # A container's shard is here only if the container itself is gone.
        rows = read_shard(self._out, self._generations, shard_of(name)).num_rows if "-" not in name else 0
        metadata = {**table.schema.metadata, IMAGES_KEY: str(rows).encode()}
        if kept.num_rows < table.num_rows or metadata != table.schema.metadata:
            storage.write_table(file, kept.replace_schema_metadata(metadata))

    def _is_gone(self, uri: str) -> bool:
        return bool(self._gone(pa.chunked_array([pa.array([uri])]))[0].as_py())

    def _gone(self, uris: pa.ChunkedArray) -> pa.ChunkedArray:
        """Whether each image is gone itself, or lay in a container that is."""
        gone = pc.is_in(uris, self._uris)
        if not self._containers:
            return gone
        return pa.chunked_array(
            [
                [
                    itself or self._inside(uri)
                    for itself, uri in zip(gone.to_pylist(), uris.to_pylist(), strict=True)
                ]
            ],
            pa.bool_(),
        )

    def _inside(self, uri: str) -> bool:
        """Whether an image's address begins with a gone container's, and a number sign."""
        return any(uri[: sign.start()] in self._containers for sign in re.finditer("#", uri))

    def _write_duplicates(self, name: str, rows: list[dict[str, str]]) -> None:
        file = self._file("duplicates", name)
        if rows:
            storage.write_table(file, pa.Table.from_pylist(rows, DUPLICATES_SCHEMA))
        else:
            storage.remove(file)

    def _file(self, folder: str, name: str) -> str:
        return storage.join(self._out, folder, name)
