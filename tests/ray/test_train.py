"""Training on real photographs: two vocabularies side by side, a second run, and labels that cannot be trained on."""

import ctypes
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import write_photographs

from reco_ray.cli import main
from reco_ray.contents import DuplicatesContent
from reco_ray.corpus.image_groups import GROUPS, GROUPS_SCHEMA
from reco_ray.files import artifacts
from reco_ray.files.storage import write_table
from reco_ray.training import Segmenter
from reco_ray.training.pseudo_labels import decode

SMALL = ["--exemplars", "2", *(
    f"--set={key}"
    for key in (
        "references.image_size=96", "segment.image_size=96", "train.image_size=64", "train.crop=64",
        "train.batch_size=2", "train.checkpoint_every=2", "segment.calibrate=8",
    )
)]  # fmt: skip
IN_OPEN = 0x20

pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, an index of them, two vocabularies, and labels of people that nobody may open."""
    folder = tmp_path_factory.mktemp("train")
    write_photographs(folder / "data" / "images", 8)
    write_photographs(folder / "data" / "labels", 1)
    (folder / "one.txt").write_text("dog\nsky\n")
    (folder / "two.txt").write_text("bird\nsky\n")
    main(["embed", "--corpus", str(folder / "data" / "images"), "--out", str(folder / "embeddings")])
    main(["index", "--embeddings", str(folder / "embeddings"), "--out", str(folder / "index")])
    return folder


def train(folder: Path, *vocabularies: str, out: str = "out") -> None:
    words = [part for name in vocabularies for part in ("--vocabulary", str(folder / name))]
    places = ["--index", str(folder / "index"), "--images", str(folder / "data" / "images")]
    main(["train", *words, *places, "--out", str(folder / out), "--steps", "3", *SMALL])


def test_vocabularies_become_segmenters_and_no_label_is_opened(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(folder / "data" / "labels"), IN_OPEN) > 0
    train(folder, "one.txt", "two.txt")
    with pytest.raises(BlockingIOError):
        os.read(watch, 4096)
    (folder / "data" / "labels" / "000.jpg").read_bytes()
    assert os.read(watch, 4096)  # the watch would have seen it
    os.close(watch)
    for name in ("one", "two"):
        made = folder / "out" / name / "segmenter"
        manifest = json.loads((made / "manifest.json").read_text())
        assert manifest["counts"] == {"steps": 3, "images": 7, "held_out": 1}
        assert sorted(file.name for file in (made / "examples").iterdir()) == [
            "step-000002.jpg",
            "step-000003.jpg",
        ]
        assert list((made / "tensorboard").iterdir())
    assert Segmenter.from_artifact(str(folder / "out" / "one" / "segmenter")).labels == ["dog", "sky"]
    # One sample of the images calibrates both vocabularies.
    assert len(list((folder / "out" / "frames" / "samples").rglob("sample.safetensors"))) == 1
    (shard,) = (folder / "out" / "one" / "labels" / "labels").glob("*.parquet")
    for row in pq.read_table(shard).to_pylist():
        soft = decode(row["soft"]).reshape(2, 12, -1).astype(int)
        assert abs(soft.sum(0) - 255).max() <= 1
        assert (decode(row["label"]) < 2).all()
    capfd.readouterr()
    train(folder, "one.txt", "two.txt")
    assert capfd.readouterr().err.count("nothing to do") == 6


def test_of_near_duplicates_one_is_an_exemplar(folder: Path) -> None:
    """The two exemplars of a concept are declared copies of each other: the third of the ranking takes a place."""
    index, before = str(folder / "index"), folder / "before"
    command = [
        "references",
        "--index",
        index,
        "--concepts",
        "dog",
        "--set",
        "references.context_elimination=false",
    ]
    main([*command, *SMALL, "--exemplars", "3", "--out", str(before)])
    ranking = pq.read_table(before / "exemplars.parquet").to_pylist()
    made_at = json.loads((folder / "index" / "manifest.json").read_text())["made_at"]
    content = DuplicatesContent(index=index, index_made_at=made_at, similarity=0.97)
    groups = artifacts.ArtifactWriter(str(folder / "groups"), DuplicatesContent, {"made": "by a test"})
    groups.finished()
    copies = [
        {"group": 0, "kept": not row["rank"], "similarity": 0.98, "width": 1, "height": 1}
        | {name: row[name] for name in ("image_id", "uri")}
        for row in ranking[:2]
    ]
    write_table(str(folder / "groups" / GROUPS), pa.Table.from_pylist(copies, schema=GROUPS_SCHEMA))
    groups.commit({}, content)
    after = folder / "after"
    main([*command, *SMALL, "--duplicates", str(folder / "groups"), "--out", str(after)])
    found = pq.read_table(after / "exemplars.parquet").to_pylist()
    assert [row["uri"] for row in found] == [ranking[0]["uri"], ranking[2]["uri"]]
    assert [row["rank"] for row in found] == [0, 1]
    recipe = json.loads((after / "manifest.json").read_text())["made_from"]
    assert recipe["references.duplicates"] == str(folder / "groups")
    assert "references.duplicates" not in json.loads((before / "manifest.json").read_text())["made_from"]


def test_labels_of_another_vocabulary_are_named_before_training(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = str(folder / "out" / "one" / "labels")
    with pytest.raises(SystemExit):
        main(
            ["train", "--labels", labels, "--vocabulary", str(folder / "two.txt"), "--out", str(folder / "x")]
        )
    assert "pseudo-labels of another vocabulary" in capfd.readouterr().err
    assert not (folder / "x").exists()


def test_labels_that_are_all_ignored_are_named_before_training(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    references = str(folder / "out" / "one" / "references")
    images = str(folder / "data" / "images")
    unsure = [*SMALL[2:], "--set", "train.min_score=1"]
    bad = f"uri,concept,verdict,sample\n{images}/003.jpg,dog,bad,random\n{images}/004.jpg,dog,good,random\n"
    (folder / "verdicts.csv").write_text(bad)
    unsure += ["--verdicts", str(folder / "verdicts.csv")]
    main(["label", "--references", references, "--images", images, "--out", str(folder / "unsure"), *unsure])
    frames = pq.read_table(folder / "unsure" / "frames" / "frames", columns=["uri"])["uri"].to_pylist()
    assert sorted(Path(uri).name for uri in frames) == [f"{n:03d}.jpg" for n in range(8) if n != 3]
    with pytest.raises(SystemExit):
        main(["train", "--labels", str(folder / "unsure" / "one" / "labels"), "--out", str(folder / "y")])
    assert "every pseudo-label is ignored: lower train.min_score" in capfd.readouterr().err


def test_one_command_leads_from_a_folder_to_a_segmenter(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = str(folder / "data" / "images")
    command = ["run", "--corpus", images, "--images", images, "--concepts", "dog, sky", "--train"]
    command += [*SMALL, "--set", "train.steps=2", "--out", str(tmp_path / "My Photos")]
    main(command)
    out = tmp_path / "My Photos"
    printed = capfd.readouterr()
    assert printed.out.splitlines() == [
        f"serve it:  reco-ray serve --segmenter 'my-photos={out}/segmenter'",
        "call it:   curl -s http://127.0.0.1:8000/v1/segment -F image=@photo.jpg -F vocabulary=my-photos "
        "-H 'Accept: image/png' -o mask.png",
    ]
    assert printed.err.count("report ") == 2
    page = (out / "segmenter-report" / "index.html").read_text()
    for text in ("Segmenter: frozen:", "Step 2 was kept", "dog", "Held-out images", "% sure"):
        assert text in page
    names = {path.name for path in (out / "masks" / "masks").iterdir()}
    assert {path.name for path in (out / "segmenter-masks" / "masks").iterdir()} == names
    main(command)
    again = capfd.readouterr().err
    assert again.count("nothing to do") == 7
    main([*command, "--set", "train.steps=3"])  # another segmenter and its masks, nothing else
    said = capfd.readouterr().err
    assert said.count("nothing to do") == 5
    assert "train.steps=2, now 3" in said or "train.steps" in said
    assert json.loads((out / "segmenter" / "manifest.json").read_text())["counts"]["steps"] == 3


def test_a_segmenter_that_cannot_be_trained_ends_a_run_before_it_embeds(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = str(folder / "data" / "images")
    command = ["run", "--corpus", images, "--images", images, "--concepts", "dog, sky", "--train", *SMALL]
    for wrong, line in (
        (
            ["--set", "train.crop=50", "--set", "train.segmenter=smp:Segformer/tu-tf_efficientnet_lite0"],
            "train.crop=50 is not a multiple of 32",
        ),
        (["--images", f"{images}/000.jpg"], "two images at least"),
        (["--concepts", ", ".join(f"thing {n}" for n in range(256))], "at most 255 labels"),
    ):
        with pytest.raises(SystemExit):
            main([*command, *wrong, "--out", str(tmp_path / "out")])
        assert line in capfd.readouterr().err
        assert not (tmp_path / "out" / "embeddings").exists()
