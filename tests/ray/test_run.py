"""The main job on real photographs, as a user runs it: one command, then everything it promised is looked at."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from images import photograph, write_photographs
from in_process import stages_in_process
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from safetensors.torch import load_file

from reco_ray.cli import main

VOCABULARY = """
concepts: [dog, car, bird, sky, {name: vegetation, alias: tree}]
"""
SMALL = ["--exemplars", "3", "--set", "references.image_size=128", "--set", "segment.image_size=128"]

INSIDE = "corpus/deep/out"  # the output lies in the corpus, of which it is no part

ALIKE = ("upright.jpg", "upright.png.jpg", f"{'写' * 82}.jpg")  # file systems allow names of 255 bytes

pytestmark = pytest.mark.cpus(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over 28 photographs, with one damaged image among those to segment."""
    folder = tmp_path_factory.mktemp("run")
    write_photographs(folder / "corpus", 28, long_side=200)
    write_photographs(folder / "images" / "street", 2, long_side=160)
    photograph(2, 160).rotate(90, expand=True).save(folder / "images" / "upright.png")
    for name in ALIKE:
        photograph(3, 80).save(folder / "images" / name, "JPEG")
    (folder / "images" / "broken.jpg").write_bytes(b"not a picture")
    (folder / "words.yaml").write_text(VOCABULARY)
    run(folder)
    (folder / "out").symlink_to(folder / INSIDE)
    return folder


def run(folder: Path) -> None:
    words = ["--vocabulary", str(folder / "words.yaml")]
    places = [
        "--corpus",
        str(folder / "corpus"),
        "--images",
        str(folder / "images"),
        "--out",
        str(folder / INSIDE),
    ]
    main(["run", *places, *words, *SMALL, "--refine", "pamr"])


def test_every_stage_left_a_manifest_with_its_counts(finished: Path) -> None:
    counts = {
        stage: json.loads((finished / "out" / stage / "manifest.json").read_text())["counts"]
        for stage in ("embeddings", "index", "references", "masks")
    }
    assert counts["embeddings"] == {"images": 28, "embedded": 28, "rejected": 0, "duplicates": 0}
    assert counts["index"] == {"images": 28}
    # dog, car and bird, and the five context concepts, of which two are asked for by name or alias
    assert counts["references"] == {"concepts": 5, "exemplars": 8 * 3}
    assert counts["masks"] == {"images": 7, "segmented": 6, "rejected": 1}


def test_masks_fit_their_images_and_agree_with_the_regions(finished: Path) -> None:
    masks = finished / "out" / "masks"
    regions = pq.read_table(masks / "regions").to_pylist()
    assert len(list((masks / "masks").rglob("*.png"))) == len({row["mask"] for row in regions}) == 6
    for file in ("street/000.jpg", "street/001.jpg", "upright.png", *ALIKE):
        rows = [row for row in regions if row["uri"] == str(finished / "images" / file)]
        name = rows[0]["name"]
        assert name == file or file == ALIKE[2]
        assert rows[0]["mask"] == f"masks/{name}.png"
        mask = Image.open(masks / rows[0]["mask"])
        assert mask.mode == "P"
        assert mask.size == Image.open(rows[0]["uri"]).size == (rows[0]["width"], rows[0]["height"])
        labels = np.asarray(mask)
        assert {row["label"]: row["area"] for row in rows} == dict(
            zip(*(v.tolist() for v in np.unique(labels, return_counts=True)), strict=True)
        )
        for row in rows:
            shape = coco_mask.decode({"size": list(labels.shape), "counts": row["rle"]})
            np.testing.assert_array_equal(shape, labels == row["label"])
            assert 0 < row["score"] < 1
        assert Image.open(masks / "overlays" / f"{name}.jpg").width >= 80
    rejected = pq.read_table(masks / "rejected").to_pylist()
    assert [Path(row["uri"]).name for row in rejected] == ["broken.jpg"]
    assert "not an image" in rejected[0]["reason"]


def test_references_are_unit_vectors_of_seeds_inside_their_maps(finished: Path) -> None:
    bank = finished / "out" / "references"
    tensors = load_file(bank / "references.safetensors")
    assert tensors["references"].shape == (5, 672)
    torch.testing.assert_close(tensors["references"].norm(dim=1), torch.ones(5))
    assert tensors["context_references"].shape == (5, 672)
    # sky is the second context concept, vegetation an alias of the first, tree
    torch.testing.assert_close(tensors["references"][3], tensors["context_references"][1])
    torch.testing.assert_close(tensors["references"][4], tensors["context_references"][0])
    exemplars = pq.read_table(bank / "exemplars.parquet")
    assert exemplars["concept"].unique().to_pylist() == ["dog", "car", "bird", "sky", "vegetation"]
    for concept in ("dog", "vegetation"):
        similarity = exemplars.filter(pc.equal(exemplars["concept"], concept))["similarity"].to_pylist()
        assert similarity == sorted(similarity, reverse=True)
    supports = load_file(bank / "supports.safetensors")["000-dog"].float()
    dog = exemplars.filter(pc.equal(exemplars["concept"], "dog")).to_pylist()
    for row, support in zip(dog, supports, strict=True):
        assert support[row["seed_row"], row["seed_col"]] == pytest.approx(support.max().item(), rel=1e-2)
    assert Image.open(bank / "sheets" / "000-dog.jpg").width > 300


def test_retrieval_finds_the_two_dogs_first(finished: Path) -> None:
    rows = pq.read_table(finished / "out" / "references" / "exemplars.parquet").to_pylist()
    first = sorted(Path(row["uri"]).stem for row in rows if row["concept"] == "dog" and row["rank"] < 2)
    assert first == ["000", "016"]  # ImageNet's bull mastiff and dalmatian


def test_the_report_is_one_file_that_shows_everything(finished: Path) -> None:
    page = (finished / "out" / "report" / "index.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    for text in (
        "dog",
        "vegetation",
        "street/000",
        "upright",
        "1 rejected",
        "% sure",
        "how sure the model is",
    ):
        assert text in page
    assert page.count("data:image/jpeg;base64,") == 5 + 2 * 6


def test_the_masks_are_exported_by_workers(finished: Path, tmp_path: Path) -> None:
    masks, out = finished / "out" / "masks", tmp_path / "coco"
    main(["export-masks", "--masks", str(masks), "--format", "coco", "--out", str(out)])
    coco = COCO(str(out / "annotations" / "instances_train.json"))
    assert len(coco.getImgIds()) == 6
    names = [category["name"] for category in coco.loadCats(coco.getCatIds())]
    areas: Counter[tuple[int, str]] = Counter()
    for annotation in coco.loadAnns(coco.getAnnIds()):
        key = annotation["image_id"], names[annotation["category_id"] - 1]
        areas[key] += int(coco.annToMask(annotation).sum())
    numbers = {
        name: n for n, name in enumerate(pq.read_table(masks / "images.parquet")["name"].to_pylist(), 1)
    }
    regions = pq.read_table(masks / "regions").to_pylist()
    expected = {(numbers[row["name"]], row["concept"]): row["area"] for row in regions}
    for image in coco.loadImgs(coco.getImgIds()):
        assert (out / "images" / "train" / image["file_name"]).is_file()
    assert areas == expected
    main(["verify", str(out)])


def test_the_same_command_again_does_nothing_and_says_so(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = ("embeddings", "index", "references", "masks")
    files = [f for stage in stages for f in (finished / "out" / stage).rglob("*") if f.is_file()]
    before = {file: file.stat().st_mtime_ns for file in files}
    run(finished)
    assert capsys.readouterr().err.count("nothing to do, made before") == 4
    assert {file: file.stat().st_mtime_ns for file in files} == before


def test_an_interrupted_reference_stage_builds_only_what_is_missing(finished: Path, tmp_path: Path) -> None:
    arguments = ["references", "--index", str(finished / "out" / "index"), "--concepts", "dog, car", *SMALL]
    out = tmp_path / "references"
    with stages_in_process():
        main([*arguments, "--out", str(out)])
    first = (out / "references.safetensors").read_bytes()
    parts = sorted((out / "concepts").glob("*.safetensors"), key=os.path.getmtime)
    kept = {part: part.stat().st_mtime_ns for part in parts[:-1]}
    parts[-1].unlink()
    (out / "manifest.json").unlink()
    with stages_in_process():
        main([*arguments, "--out", str(out)])
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    assert (out / "references.safetensors").read_bytes() == first


def test_crf_and_plain_masks_differ_only_in_refinement(finished: Path, tmp_path: Path) -> None:
    common = ["segment", "--references", str(finished / "out" / "references")]
    common += ["--images", str(finished / "images" / "street"), "--set", "segment.image_size=128"]
    labels = {}
    for method in ("none", "crf"):
        with stages_in_process():
            main([*common, "--refine", method, "--out", str(tmp_path / method)])
        masks = sorted((tmp_path / method / "masks").glob("*.png"))
        labels[method] = np.concatenate([np.asarray(Image.open(mask)).reshape(-1) for mask in masks])
    assert 0.5 < (labels["none"] == labels["crf"]).mean() < 1
