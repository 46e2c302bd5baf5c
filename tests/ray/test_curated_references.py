"""Chosen exemplars through the stages: docs/curation.md on 28 photographs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from documents import DOCS, blocks
from images import photograph, write_photographs
from PIL import Image
from safetensors.torch import load_file

from reco_ray.cli import main
from reco_ray.config import load_settings
from reco_ray.corpus.index import build_index
from reco_ray.corpus.stage import embed_corpus

pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process")]
SMALL = [
    "references.exemplars=3",
    "references.image_size=128",
    "segment.image_size=128",
    "segment.calibrate=8",
]
SET = [word for setting in SMALL for word in ("--set", setting)]
FILES = {block.title: block.text for block in blocks(DOCS / "curation.md") if block.title}


@pytest.fixture(scope="module")
def folder(all_in_process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the document, its own images, and an index of the photographs."""
    folder = tmp_path_factory.mktemp("curation")
    write_photographs(folder / "photos", 28, long_side=200)
    (folder / "own").mkdir()
    for name, number in (("cat.jpg", 21), ("two-cats.jpg", 22), ("badge.jpg", 4), ("sign.jpg", 5)):
        photograph(number, 200).save(folder / "own" / name)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    settings = load_settings("mini", overrides=SMALL)
    embed_corpus(str(folder / "photos"), str(folder / "embeddings"), settings)
    build_index(str(folder / "embeddings"), str(folder / "index"))
    return folder


def run(*words: str) -> int:
    """The exit status."""
    try:
        main(list(words))
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def references(folder: Path, out: str, *options: str) -> int:
    return run("references", "--index", str(folder / "index"), "--out", str(folder / out), *SET, *options)


def rows(folder: Path, out: str, concept: str) -> list[dict[str, Any]]:
    table = pq.read_table(folder / out / "exemplars.parquet")
    return table.filter(pc.equal(table["concept"], concept)).to_pylist()


def names(found: list[dict[str, Any]]) -> list[str]:
    return [Path(row["uri"]).name for row in found]


def test_the_example_of_the_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--concepts", "dog, cat, car"]
    curation = ["--curation", str(folder / "curation.yaml")]
    assert references(folder, "plain", *words) == 0
    assert references(folder, "curated", *words, *curation) == 0
    dog = rows(folder, "curated", "dog")
    assert names(dog)[0] == "016.jpg"
    assert [row["source"] for row in dog] == ["pinned", "retrieved", "retrieved"]
    assert "005.jpg" not in names(dog)
    # The seed of the pinned photograph lies in its box: [60, 20, 150, 190] of the photograph, on a map of 4 x 4.
    width, height = Image.open(folder / "photos" / "016.jpg").size
    supports = load_file(folder / "curated" / "supports.safetensors")["000-dog"].float().numpy()
    side = supports.shape[1]
    assert 60 / width <= (dog[0]["seed_col"] + 0.5) / side < 150 / width
    assert 20 / height <= (dog[0]["seed_row"] + 0.5) / side < 190 / height
    cat = rows(folder, "curated", "cat")
    assert names(cat)[:2] == ["cat.jpg", "two-cats.jpg"]
    assert [row["source"] for row in cat] == ["example", "example", "retrieved"]
    point = [(70, 90), (120, 60)]
    size = Image.open(folder / "own" / "two-cats.jpg").size
    cells = {(int(y / size[1] * side), int(x / size[0] * side)) for x, y in point}
    assert (cat[1]["seed_row"], cat[1]["seed_col"]) in cells
    # Concepts without curation are the same references.
    kept = [
        load_file(folder / out / "references.safetensors")["references"][2] for out in ("plain", "curated")
    ]
    np.testing.assert_array_equal(*kept)
    capsys.readouterr()
    assert references(folder, "curated", *words, *curation) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert references(folder, "curated", *words) == 1
    assert "choose another --out" in capsys.readouterr().err


def test_another_content_of_an_example_is_another_reference(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = ["--vocabulary", str(folder / "logo.yaml")]
    assert references(folder, "logo", *vocabulary) == 0
    logo = rows(folder, "logo", "our logo")
    assert names(logo) == ["badge.jpg", "sign.jpg"]  # nothing is retrieved
    assert {row["similarity"] for row in logo} == {None}
    manifest = json.loads((folder / "logo" / "manifest.json").read_text())
    example = manifest["content"]["vocabulary"]["concepts"][1]["examples"][0]
    assert example["boxes"] == [[40, 40, 120, 120]]
    assert len(example["image_id"]) == 64
    tensors = load_file(folder / "logo" / "references.safetensors")
    assert tensors["text_embeddings"][1].count_nonzero() == 0
    out = ["--out", str(folder / "logo-masks"), "--images", str(folder / "own"), *SET]
    assert run("segment", "--references", str(folder / "logo"), *out) == 0
    table = pq.read_table(folder / "logo-masks" / "regions").to_pylist()
    of_badge = {row["concept"]: row["area"] for row in table if row["name"] == "badge.jpg"}
    assert max(of_badge, key=lambda name: of_badge[name]) == "our logo"
    photograph(6, 200).save(folder / "own" / "sign.jpg")
    assert references(folder, "logo", *vocabulary) == 1
    assert "choose another --out" in capsys.readouterr().err


EVERY = ", ".join(f"photos/{number:03d}.jpg" for number in range(28))
WRONG = {
    "cat: {rejected: [photos/nothing.jpg]}": (
        "concept 'cat': rejected: {folder}/photos/nothing.jpg: is not in the index"
    ),
    "cat: {examples: [own/gone.jpg]}": "concept 'cat': examples: {folder}/own/gone.jpg: cannot be read",
    "cat: {pinned: [{image: photos/000.jpg, box: [0, 0, 9999, 9]}]}": (
        "pinned: {folder}/photos/000.jpg: box [0, 0, 9999, 9] is outside"
    ),
    f"cat: {{rejected: [{EVERY}]}}": "28 of 28 images are rejected, which leaves 0 for 3",
    "horse: {rejected: [a.jpg]}": "line 1: concepts.horse: there is no concept 'horse': the vocabulary has cat",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_what_cannot_be_chosen_is_one_line(
    folder: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "wrong.yaml").write_text(f"concepts: {{{text}}}")
    assert references(folder, "wrong", "--concepts", "cat", "--curation", str(folder / "wrong.yaml")) == 1
    assert says.format(folder=folder) in capsys.readouterr().err.splitlines()[-1]


def test_ids_name_images_of_the_corpus(folder: Path) -> None:
    plain = rows(folder, "plain", "car") if (folder / "plain").exists() else []
    if not plain:
        assert references(folder, "plain", "--concepts", "dog, cat, car") == 0
        plain = rows(folder, "plain", "car")
    (folder / "ids.yaml").write_text(f"concepts: {{car: {{rejected: [{plain[0]['image_id']}]}}}}")
    assert references(folder, "ids", "--concepts", "car", "--curation", str(folder / "ids.yaml")) == 0
    found = rows(folder, "ids", "car")
    assert names(found)[:2] == names(plain)[1:]
    assert [row["rank"] for row in found] == [0, 1, 2]
    only = f"{{pinned: [{plain[1]['image_id']}], only_chosen: true}}"
    (folder / "only.yaml").write_text(f"concepts: {{car: {only}}}")
    assert references(folder, "only", "--concepts", "car", "--curation", str(folder / "only.yaml")) == 0
    assert names(rows(folder, "only", "car")) == names(plain)[1:2]


def test_run_finds_missing_files_before_it_embeds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [
        "--corpus",
        str(folder / "photos"),
        "--images",
        str(folder / "own"),
        "--out",
        str(folder / "run"),
    ]
    for wrong, says in (
        ("rejected: [photos/gone.jpg]", "photos/gone.jpg: there is no such file"),
        ("pinned: [photos/gone.jpg]", "photos/gone.jpg: cannot be read"),
        ("pinned: [{image: photos/000.jpg, point: [9999, 1]}]", "is outside the image"),
    ):
        (folder / "wrong.yaml").write_text(f"concepts: {{cat: {{{wrong}}}}}")
        assert run("run", *places, "--concepts", "cat", "--curation", str(folder / "wrong.yaml"), *SET) == 1
        assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "run").exists()
