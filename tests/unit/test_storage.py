"""URIs, atomic files, manifests, and the writer that guards an output directory."""

import json
import re

import pyarrow as pa
import pytest

from reco_ray.contents import EmbeddingsContent, IndexContent, Recall, ShardRecord
from reco_ray.errors import RecoError, UnreadableError
from reco_ray.files import artifacts, storage
from reco_ray.files.artifacts import MANIFEST, SCHEMA_VERSION, STARTED, ArtifactWriter, Content, Manifest

CONTENT = IndexContent(dim=8, model="conse#1", factory="Flat")
MADE_FROM = {"corpus": "/photographs", "model": "conse#1", "shard_size": 4}


def snapshot(folder):
    """Every file below a folder with its content and its time of change."""
    return {
        f.relative_to(folder): (f.read_bytes(), f.stat().st_mtime_ns)
        for f in folder.rglob("*")
        if f.is_file()
    }


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["plain.bin", "with space.bin", "with#hash.bin", "100%.bin", "a?b.bin", "фото.bin"]
)
@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_what_is_written_is_read_back(tmp_path, scheme, name):
    uri = f"{scheme}{tmp_path}/folder/{name}"
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"two"
    assert storage.list_names(f"{scheme}{tmp_path}/folder") == [name]
    assert storage.list_names(f"{scheme}{tmp_path}/folder", ".parquet") == []
    assert storage.list_names(f"{scheme}{tmp_path}/nothing") == []


def test_percent_escapes_in_uris_are_read(tmp_path):
    storage.write_bytes(str(tmp_path / "a b"), b"x")
    assert storage.read_bytes(f"file://{tmp_path}/a%20b") == b"x"


def test_a_failing_write_leaves_the_old_content_and_no_rubbish(tmp_path):
    target = tmp_path / "file.bin"
    storage.write_bytes(str(target), b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(str(target), "text, not bytes")
    assert target.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("place", ["{tmp}/a_file/inside.bin", "/proc/nowhere/file.bin", "{tmp}/a_folder"])
def test_places_that_cannot_be_written_are_named(tmp_path, place):
    (tmp_path / "a_file").write_bytes(b"x")
    (tmp_path / "a_folder").mkdir()
    before = snapshot(tmp_path)
    uri = place.format(tmp=tmp_path)
    with pytest.raises(RecoError, match=f"^{re.escape(uri)}: cannot be written: .+$"):
        storage.write_bytes(uri, b"data")
    assert snapshot(tmp_path) == before


def test_unknown_schemes_and_silent_stores_are_one_line():
    with pytest.raises(RecoError, match=r"^nosuch://bucket/x: cannot open this kind of URI"):
        storage.read_bytes("nosuch://bucket/x")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("/nowhere/at/all")


@pytest.mark.parametrize("folder", ["plain", "lr=0.1"])
def test_tables_are_read_back_alone_and_as_a_folder(tmp_path, folder):
    """Neither the folder's name (Hive partitions) nor other files add anything."""
    uri = str(tmp_path / folder)
    first, second = pa.table({"a": [1, 2], "b": ["x", "y"]}), pa.table({"a": [3], "b": ["z"]})
    storage.write_table(f"{uri}/000001.parquet", second)
    storage.write_table(f"{uri}/000000.parquet", first)
    storage.write_bytes(f"{uri}/notes.txt", b"no table")
    assert storage.read_table(f"{uri}/000000.parquet") == first
    assert storage.read_table(uri) == pa.concat_tables([first, second])
    assert storage.read_table(uri, ["b"])["b"].to_pylist() == ["x", "y", "z"]


def test_paths_are_made_absolute_and_uris_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b") == str(tmp_path / "b")
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"
    assert storage.join("s3://bucket/a/", "b", "c.bin") == "s3://bucket/a/b/c.bin"


# --- manifests ----------------------------------------------------------------------------------------------


def stored_manifest(folder, **changes):
    manifest = Manifest(kind="index", made_from=MADE_FROM, counts={"images": 3}, content=CONTENT)
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps({**manifest.model_dump(), **changes}))
    return manifest


def test_manifests_are_read_back(tmp_path):
    manifest = stored_manifest(tmp_path)
    assert artifacts.read_manifest(str(tmp_path), IndexContent) == manifest


def test_missing_and_unfinished_artifacts_are_told_apart(tmp_path):
    with pytest.raises(RecoError, match=r"nothing: this index artifact is not there"):
        artifacts.read_manifest(str(tmp_path / "nothing"), IndexContent)
    (tmp_path / STARTED).write_text("{}")
    with pytest.raises(RecoError, match=r"is unfinished: run the command that makes it again"):
        artifacts.read_manifest(str(tmp_path), IndexContent)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"kind": "index"}', "\xff\xfe"])
def test_half_written_manifests_are_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        RecoError, match=r"manifest\.json: not a manifest: delete the directory and make it again"
    ):
        artifacts.read_manifest(str(tmp_path), IndexContent)


def test_other_kinds_and_newer_schemas_are_refused(tmp_path):
    stored_manifest(tmp_path, kind="embeddings")
    with pytest.raises(RecoError, match="holds embeddings, but index is needed here"):
        artifacts.read_manifest(str(tmp_path), IndexContent)
    stored_manifest(tmp_path, schema_version=SCHEMA_VERSION + 1, made_by="reco-ray 99")
    with pytest.raises(RecoError, match=r"made by a newer version \(reco-ray 99\)"):
        artifacts.read_manifest(str(tmp_path), IndexContent)


def test_content_of_another_version_is_refused_in_one_line_or_its_new_fields_are_ignored(tmp_path):
    known = CONTENT.model_dump()
    stored_manifest(tmp_path, content=known | {"colour": "blue"})
    assert artifacts.read_manifest(str(tmp_path), IndexContent).content == CONTENT
    for content, field in (({}, "content.dim"), (known | {"shards": [{}]}, "content.shards.0.name")):
        stored_manifest(tmp_path, content=content, made_by="reco-ray 0.0.1")
        with pytest.raises(UnreadableError) as caught:
            artifacts.read_manifest(str(tmp_path), IndexContent)
        assert str(caught.value) == (
            f"{tmp_path}: was made by another version (reco-ray 0.0.1; {field} is missing or has another form): "
            "delete it and make it again"
        )
        assert artifacts.read_manifest(str(tmp_path), Content).kind == "index"


def test_fields_without_a_value_are_not_written(tmp_path):
    assert CONTENT.model_dump() == {"dim": 8, "model": "conse#1", "factory": "Flat"}
    writer = ArtifactWriter(str(tmp_path), IndexContent, MADE_FROM)
    writer.finished()
    content = IndexContent(
        dim=8,
        model="conse#1",
        factory="IVF16,SQ8",
        shards=[ShardRecord(name="000000", start=0, images=3, bytes=24, fingerprint="f")],
        nprobe=4,
        recall=Recall(k=50, queries=2, images=1.0, between=0.5),
    )
    writer.commit({}, content)
    stored = json.loads((tmp_path / MANIFEST).read_text())["content"]
    assert list(stored) == ["dim", "model", "factory", "shards", "nprobe", "recall"]
    assert stored["shards"] == [{"name": "000000", "start": 0, "images": 3, "bytes": 24, "fingerprint": "f"}]
    assert stored["recall"] == {"k": 50, "queries": 2, "images": 1.0, "between": 0.5}
    assert artifacts.read_manifest(str(tmp_path), IndexContent).content == content


# --- the writer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_an_artifact_counts_from_its_commit_on(tmp_path, scheme):
    uri = f"{scheme}{tmp_path}/new/artifact"
    writer = ArtifactWriter(uri, IndexContent, MADE_FROM)
    assert writer.finished() is None
    with pytest.raises(RecoError, match="is unfinished"):
        artifacts.read_manifest(uri, IndexContent)
    committed = writer.commit({"images": 3}, CONTENT)
    assert artifacts.read_manifest(uri, IndexContent) == committed
    assert committed.counts == {"images": 3}
    assert ArtifactWriter(uri, IndexContent, MADE_FROM).finished() == committed


def test_a_finished_artifact_is_not_touched_again(tmp_path):
    writer = ArtifactWriter(str(tmp_path), IndexContent, MADE_FROM)
    writer.finished()
    writer.commit({}, CONTENT)
    before = snapshot(tmp_path)
    assert (
        ArtifactWriter(str(tmp_path), IndexContent, dict(reversed(MADE_FROM.items()))).finished() is not None
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("finished", "verb"), [(True, "made"), (False, "begun")])
def test_other_inputs_are_refused_and_named(tmp_path, finished, verb):
    writer = ArtifactWriter(str(tmp_path), IndexContent, MADE_FROM)
    writer.finished()
    if finished:
        writer.commit({}, CONTENT)
    before = snapshot(tmp_path)
    other = {"corpus": "/photographs", "model": "conse#2", "shard_size": 4, "extra": True}
    with pytest.raises(RecoError) as caught:
        ArtifactWriter(str(tmp_path), IndexContent, other).finished()
    message = str(caught.value)
    assert message == (
        f"{tmp_path}: {verb} with extra = none, now yes; model = conse#1, now conse#2: "
        "choose another --out, or delete it to make it anew"
    )
    assert snapshot(tmp_path) == before


def test_unfinished_work_of_the_same_inputs_goes_on(tmp_path):
    ArtifactWriter(str(tmp_path), IndexContent, MADE_FROM).finished()
    (tmp_path / "shard.bin").write_bytes(b"half the work")
    before = snapshot(tmp_path)
    assert ArtifactWriter(str(tmp_path), IndexContent, MADE_FROM).finished() is None
    assert snapshot(tmp_path) == before


def test_foreign_directories_are_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(RecoError, match="is not empty and no index artifact: choose another --out"):
        ArtifactWriter(str(tmp_path), IndexContent, MADE_FROM).finished()
    assert snapshot(tmp_path) == before


def test_artifacts_of_another_kind_are_refused_untouched(tmp_path):
    embeddings = ArtifactWriter(str(tmp_path), EmbeddingsContent, MADE_FROM)
    embeddings.finished()
    with pytest.raises(RecoError, match="holds unfinished embeddings, choose another --out"):
        ArtifactWriter(str(tmp_path), IndexContent, MADE_FROM).finished()
    embeddings.commit({}, EmbeddingsContent(dim=8, model="conse#1", shards=1))
    before = snapshot(tmp_path)
    with pytest.raises(RecoError, match="holds embeddings, but index is needed here"):
        ArtifactWriter(str(tmp_path), IndexContent, MADE_FROM).finished()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "index"}', '{"kind": "index", "made_from": 3}'])
def test_a_damaged_start_is_refused(tmp_path, text):
    (tmp_path / STARTED).write_text(text)
    with pytest.raises(RecoError, match=r"started\.json: damaged: delete the directory"):
        ArtifactWriter(str(tmp_path), IndexContent, MADE_FROM).finished()


def test_an_unwritable_output_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RecoError, match="cannot be written"):
            ArtifactWriter(str(place), IndexContent, MADE_FROM).finished()
    assert snapshot(tmp_path).keys() == {(tmp_path / "file").relative_to(tmp_path)}


def test_digests_depend_on_content_not_on_key_order():
    assert storage.digest({"a": 1, "b": [2]}) == storage.digest({"b": [2], "a": 1})
    assert storage.digest("ab", "c") != storage.digest("a", "bc")
