"""One --out over several runs: after each the artifacts hold what a run into an empty directory makes.

The tests work on the same directory, one after another, in the order of this file.
"""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from images import encoded, photograph, write_photographs

from reco_ray.cli import main
from reco_ray.files import artifacts, storage
from reco_ray.files.artifacts import Content
from reco_ray.files.verify import verify

SMALL = [
    "--set=references.image_size=96",
    "--set=segment.image_size=96",
    "--set=references.context_elimination=false",
    "--set=segment.shard_size=2",
]
WORDS = ("--concepts", "cat, dog", "--exemplars", "3")
STAGES = ("embeddings", "index", "references", "masks")

pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("again")
    write_photographs(folder / "corpus", 14)
    write_photographs(folder / "images", 3)
    copy = (folder / "corpus" / "003.jpg").read_bytes()
    (folder / "corpus" / "copy.jpg").write_bytes(copy)
    (folder / "corpus" / "another.jpg").write_bytes(copy)
    (folder / "corpus" / "torn.jpg").write_bytes(b"no picture")
    return folder


class Reco:
    """`reco-ray run` and what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capsys = folder, capsys

    def run(self, out: str, *options: str, shard_size: int = 4) -> dict[str, str]:
        """The lines on the terminal by stage, several of one stage as one text."""
        main(["run", *self._places(out), *SMALL, f"--set=embed.shard_size={shard_size}", *options])
        return self.said()

    def fails(self, out: str, *options: str) -> str:
        with pytest.raises(SystemExit) as caught:
            self.run(out, *options)
        assert caught.value.code == 1
        (line,) = [line for line in self._capsys.readouterr().err.splitlines() if "error:" in line]
        assert "--follow" not in line
        return line

    def said(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in self._capsys.readouterr().err.splitlines():
            stage, _, rest = line.partition(" ")
            found[stage] = f"{found.get(stage, '')}{rest.strip()}\n"
        return found

    def _places(self, out: str) -> list[str]:
        corpus, images = self._folder / "corpus", self._folder / "images"
        return ["--corpus", str(corpus), "--images", str(images), "--out", str(self._folder / out)]


@pytest.fixture
def reco(folder: Path, capsys: pytest.CaptureFixture[str]) -> Reco:
    return Reco(folder, capsys)


def content(out: Path, *, copies: bool = False) -> dict[str, Any]:
    """What an artifact's reader finds, whatever parts it lies in; masks and references byte for byte.

    Args:
        copies: with the URI that an image has; which one of several copies is kept depends on which came first.
    """
    embedded = table(out / "embeddings" / "embeddings")
    listed = [row["uri"] for name in ("embeddings", "duplicates", "rejected")
              for row in table(out / "embeddings" / name)]  # fmt: skip
    rows = [{**row, "uri": row["uri"] if copies else ""} for row in embedded]
    found: dict[str, Any] = {
        "embeddings": sorted(rows, key=lambda row: row["image_id"]),
        "listed": sorted(listed),
        "counts": {stage: artifacts.read_manifest(str(out / stage), Content).counts for stage in STAGES},
        "indexed": sorted(row["image_id"] for row in table(out / "index" / "images")),
        "exemplars": [{**row, "uri": ""} for row in table(out / "references" / "exemplars.parquet")],
        "regions": sorted(table(out / "masks" / "regions"), key=lambda row: (row["uri"], row["label"])),
        "rejected": sorted(row["uri"] for row in table(out / "masks" / "rejected")),
    }
    for file in ("references/references.safetensors", "references/supports.safetensors"):
        found[file] = (out / file).read_bytes()
    for kind in ("masks", "overlays"):
        for file in sorted((out / "masks" / kind).rglob("*.*")):
            found[str(file.relative_to(out))] = file.read_bytes()
    return found


def table(place: Path) -> list[dict[str, Any]]:
    return pq.read_table(place).to_pylist() if place.exists() and any_rows(place) else []


def any_rows(place: Path) -> bool:
    return place.is_file() or any(place.glob("*.parquet"))


def is_as_fresh(folder: Path, fresh: str) -> None:
    assert content(folder / "out") == content(folder / fresh)
    for stage in STAGES:
        assert verify(str(folder / "out" / stage)).differences == []


def test_photographs_come_go_and_change(folder: Path, reco: Reco) -> None:
    """Also renamed ones; of two copies the original goes, and a damaged file is mended."""
    assert "anew" not in "".join(reco.run("out", *WORDS).values())
    corpus, images = folder / "corpus", folder / "images"
    (corpus / "003.jpg").unlink()
    (corpus / "000.jpg").rename(corpus / "renamed.jpg")
    (corpus / "002.jpg").write_bytes(encoded(photograph(20)))
    (corpus / "torn.jpg").write_bytes(encoded(photograph(21)))
    (corpus / "new.jpg").write_bytes(encoded(photograph(22)))
    (images / "000.jpg").unlink()
    (images / "002.jpg").write_bytes(encoded(photograph(9)))
    (images / "new.jpg").write_bytes(encoded(photograph(10)))
    (images / "torn.jpg").write_bytes(b"no picture")
    said = reco.run("out", *WORDS)
    assert said["embed"].startswith("4 new, 4 gone or changed since, 13 kept\n17 images, 16 embedded")
    assert "made with embeddings_made_at" in said["index"]
    reco.run("fresh", *WORDS)
    is_as_fresh(folder, "fresh")


def test_only_what_other_images_and_settings_make_is_made(
    folder: Path, reco: Reco, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, masks = folder / "images", folder / "out" / "masks" / "masks"
    before = {file: file.stat().st_mtime_ns for file in masks.iterdir()}
    (images / "torn.jpg").unlink()
    (images / "again.jpg").write_bytes(encoded(photograph(11)))
    said = reco.run("out", *WORDS)
    assert all("nothing to do, made before" in said[stage] for stage in ("embed", "index", "reference"))
    assert said["segment"].startswith("1 to do, 1 gone or changed since, 3 kept\n4 images, 4 segmented")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert sorted(file.name for file in masks.iterdir()) == [
        "001.jpg.png", "002.jpg.png", "again.jpg.png", "new.jpg.png"
    ]  # fmt: skip

    # Foreign files are refused, before anything is deleted.
    (masks / "mine.png").write_bytes(b"mine")
    assert "masks/mine.png in it is no file of masks" in reco.fails("out", *WORDS, "--refine", "pamr")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    (masks / "mine.png").unlink()

    # Another refinement replaces the masks only; killed before its end, the same command goes on.
    commit = artifacts.ArtifactWriter.commit

    def killed(writer: artifacts.ArtifactWriter, *arguments: Any) -> Any:
        if writer.kind == "masks":
            raise storage.RecoError("killed")
        return commit(writer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.ArtifactWriter, "commit", killed)
        assert "killed" in reco.fails("out", *WORDS, "--refine", "pamr")
    assert not (folder / "out" / "masks" / "manifest.json").exists()
    said = reco.run("out", *WORDS, "--refine", "pamr")
    assert "0 to do, 0 gone or changed since, 4 kept" in said["segment"]


def test_other_concepts_and_other_embeddings_replace_what_they_concern(folder: Path, reco: Reco) -> None:
    words = ("--concepts", "bird, dog, car", "--exemplars", "3")
    said = reco.run("out", *words)
    assert all("nothing to do, made before" in said[stage] for stage in ("embed", "index"))
    assert "made with vocabulary.concepts: no longer cat, now also bird, car: made anew" in said["reference"]
    assert "segment.refine = pamr, now superpixels" in said["segment"]
    shutil.rmtree(folder / "fresh")
    reco.run("fresh", *words)
    is_as_fresh(folder, "fresh")

    # Other embeddings replace all, but masks of the same references stay.
    said = reco.run("out", *words, shard_size=3)
    assert "made with embed.shard_size = 4, now 3: made anew" in said["embed"]
    assert "made anew" in said["index"]
    assert "made anew" in said["reference"]
    assert "nothing to do, made before" in said["segment"]
    is_as_fresh(folder, "fresh")


def test_a_second_run_at_once_is_refused(folder: Path, reco: Reco) -> None:
    (folder / "busy").mkdir()
    with FileLock(folder / "busy" / ".run.lock"):
        assert "another reco-ray run is writing there" in reco.fails("busy", "--concepts", "cat")
    assert [path.name for path in (folder / "busy").iterdir()] == [".run.lock"]


def test_directories_of_something_else_are_refused_at_the_start(folder: Path, reco: Reco) -> None:
    for stage in STAGES:
        (folder / stage / stage).mkdir(parents=True)
        (folder / stage / stage / "notes.txt").write_bytes(b"mine")
        assert "is not empty and no " in reco.fails(stage, "--concepts", "cat")
        assert [path.name for path in (folder / stage).rglob("*")] == [stage, "notes.txt"]
