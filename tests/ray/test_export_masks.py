"""Masks in other tools' formats, read back by their libraries: pixels, names, ids and scores are those of the masks."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documents import DOCS, blocks, commands
from format_readers import Found, read_with
from images import encoded, photograph
from mask_maps import score_map, write_masks
from PIL import Image
from pycocotools.coco import COCO
from skimage import measure
from stores import hub, s3_store
from torchvision.datasets import VOCSegmentation

from reco_ray.cli import main
from reco_ray.corpus.read import list_images
from reco_ray.files import storage
from reco_ray.registry import MASK_FORMATS

pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process")]

LABELS = ["background", "cat", "собака", "日本の 犬", 'a <b> & "c"', "naïve"]
SIZE = (60, 80)
# The path of each image, without suffix, in formats that keep folders.
STEMS = {
    "street/rings.jpg": "street/rings",
    "lines.png": "lines",
    "empty.jpg": "empty",
    "full.jpg": "full",
    "naïve фото 日本 a.b.jpg": "naïve фото 日本 a.b",
    "street/images/x.jpg": "street/images/x.jpg",
    "street/images/x.png": "street/images/x.png",
    "turned.jpg": "turned",
}


def label_maps() -> dict[str, np.ndarray]:
    """Holes in holes, lines one pixel wide, single pixels, noise, nothing, everything."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    far = np.hypot(rows - 30, columns - 40)
    rings = np.select([far < 4, far < 8, far < 14, far < 20, far < 27], [1, 2, 1, 0, 3])
    rings[28:33, 50:54] = 0  # a second hole in the ring
    lines = np.zeros(SIZE, int)
    lines[5], lines[:, 7] = 1, 2
    lines[np.arange(10, 50), np.arange(10, 50)] = 3
    lines[0, 0] = lines[59, 79] = lines[0, 79] = lines[30, 70] = 4
    lines[40:45, 60] = 5
    halves = np.where(columns < 40, 1, 4)
    return {
        "street/rings.jpg": rings,
        "lines.png": lines,
        "empty.jpg": np.zeros(SIZE, int),
        "full.jpg": np.full(SIZE, 2),
        "naïve фото 日本 a.b.jpg": random.integers(0, 6, SIZE),
        "street/images/x.jpg": halves,
        "street/images/x.png": np.where(random.random(SIZE) < 0.6, 5, 0),
        "turned.jpg": halves[:, ::-1].T.copy(),
    }


MAPS = label_maps()


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    turned = encoded(photograph(3).resize((SIZE[1], SIZE[0])), exif=exif)
    return write_masks(tmp_path_factory.mktemp("masks"), MAPS, LABELS, images={"turned.jpg": turned})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 concepts, without a background."""
    ids = np.arange(60 * 80).reshape(60, 80) // 16
    return write_masks(
        tmp_path_factory.mktemp("many"),
        {"a.jpg": ids},
        [f"concept {n:03d}" for n in range(300)],
        labeller="plain",
    )


@pytest.fixture(scope="module")
def export(masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports the masks, each format once."""
    made: dict[str, Path] = {}

    def once(form: str) -> Path:
        if form not in made:
            made[form] = tmp_path_factory.mktemp("exports") / form
            run(masks, form, made[form])
        return made[form]

    return once


def run(masks: Path, form: str, out: Path, *others: str) -> None:
    main(["export-masks", "--masks", str(masks), "--format", form, "--out", str(out), *others])


def pixels(objects: list[Found], image: str, concept: str) -> np.ndarray:
    """All pixels of a concept that a tool has found in an image."""
    found = [each.mask for each in objects if (each.image, each.concept) == (image, concept)]
    shape = next(each.mask.shape for each in objects if each.image == image) if found else SIZE
    return np.logical_or.reduce([*found, np.zeros(shape, bool)])


def require_masks(
    images: list[str], objects: list[Found], names: Callable[[str], str], *, scores: bool = False
) -> None:
    """The tool has found every image, and in it the pixels of every concept and nothing else."""
    assert sorted(images) == sorted(names(name) for name in MAPS)
    for name, ids in MAPS.items():
        own = [each for each in objects if each.image == names(name)]
        assert {each.concept for each in own} == {LABELS[label] for label in np.unique(ids) if label}
        for label in np.unique(ids[ids > 0]):
            np.testing.assert_array_equal(pixels(objects, names(name), LABELS[label]), ids == label)
            if scores:
                expected = float(score_map(ids)[ids == label].mean())
                given = [each.score for each in own if each.concept == LABELS[label]]
                assert given == pytest.approx([expected] * len(given), abs=1e-4)


def require_instances(objects: list[Found], names: Callable[[str], str]) -> None:
    """The objects are the connected components."""
    for name, ids in MAPS.items():
        count = measure.label(ids, background=0, connectivity=2, return_num=True)[1]
        assert sum(each.image == names(name) for each in objects) == count


@pytest.mark.parametrize("form", ["coco", "coco-panoptic", "cvat", "voc", "mmseg"])
def test_its_tool_reads_the_masks_pixel_for_pixel(
    form: str, export: Callable[..., Path], tmp_path: Path
) -> None:
    images, objects = read_with(form.replace("-", "_"), export(form), tmp_path / "read.npz")
    require_masks(images, objects, STEMS.__getitem__, scores=form in ("coco", "cvat"))
    if form == "coco":
        require_instances(objects, STEMS.__getitem__)


@pytest.mark.parametrize("reader", ["yolo", "yolo_training"])
def test_polygons_fill_to_the_same_pixels(reader: str, export: Callable[..., Path], tmp_path: Path) -> None:
    images, objects = read_with(reader, export("yolo"), tmp_path / "read.npz")

    def flat(name: str) -> str:
        return STEMS[name].replace("/", "_")

    require_masks(images, objects, flat)
    require_instances(objects, flat)


def test_cvat_decodes_its_masks(export: Callable[..., Path], tmp_path: Path) -> None:
    images, objects = read_with("cvat_sdk", export("cvat"), tmp_path / "read.npz")
    require_masks(images, objects, STEMS.__getitem__, scores=True)
    raw = json.loads((export("cvat") / "labels.json").read_text())
    assert [label["name"] for label in raw] == LABELS[1:]
    assert len({label["color"] for label in raw}) == len(raw)


def test_label_studio_reads_its_brush(export: Callable[..., Path], tmp_path: Path) -> None:
    out = export("label-studio")
    images, objects = read_with("label_studio", out, tmp_path / "read.npz")
    names = {name: Path(name).name for name in MAPS}
    require_masks(images, objects, names.__getitem__, scores=True)
    tasks = [task for file in sorted((out / "tasks").iterdir()) for task in json.loads(file.read_text())]
    for task in tasks:
        (prediction,) = task["predictions"]
        assert prediction["model_version"].startswith("reco-ray ")
        assert ("score" in prediction) == bool(prediction["result"])
        assert 0.5 <= prediction.get("score", 0.5) <= 1
        place = task["data"]["image"].removeprefix("/data/local-files/?d=")
        assert "%" in place or (out / place).is_file()


def test_pycocotools_reads_ids_areas_and_boxes(export: Callable[..., Path]) -> None:
    coco = COCO(str(export("coco") / "annotations" / "instances_train.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == LABELS[1:]
    assert len(coco.getImgIds()) == len(MAPS)
    for number, name in enumerate(MAPS, 1):
        (image,) = coco.loadImgs(number)
        assert (image["height"], image["width"]) == MAPS[name].shape
        with Image.open(export("coco") / "images" / "train" / image["file_name"]) as file:
            assert (file.height, file.width) == MAPS[name].shape
        for annotation in coco.loadAnns(coco.getAnnIds(number)):
            mask = coco.annToMask(annotation).astype(bool)
            rows, columns = np.nonzero(mask)
            assert annotation["area"] == mask.sum() == (MAPS[name] == annotation["category_id"])[mask].sum()
            left, top, wide, high = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + wide, top + high) == (columns.max() + 1, rows.max() + 1)
    assert sorted(coco.getAnnIds()) == list(range(1, len(coco.getAnnIds()) + 1))


def test_panoptic_segments_have_scores(export: Callable[..., Path]) -> None:
    document = json.loads((export("coco-panoptic") / "annotations" / "panoptic_train.json").read_text())
    assert {category["isthing"] for category in document["categories"]} == {0}
    for image, annotation in zip(document["images"], document["annotations"], strict=True):
        assert annotation["image_id"] == image["id"]
        ids = list(MAPS.values())[image["id"] - 1]
        for segment in annotation["segments_info"]:
            own = ids == segment["category_id"]
            assert segment["area"] == own.sum()
            assert segment["score"] == pytest.approx(float(score_map(ids)[own].mean()), abs=1e-4)


def test_torchvision_reads_voc(export: Callable[..., Path]) -> None:
    found = VOCSegmentation(str(export("voc")), year="2012", image_set="train", download=False)
    assert len(found) == len(MAPS)
    read = {}
    for file, (photo, mask) in zip(found.masks, found, strict=True):
        assert (photo.size, mask.mode) == (mask.size, "P")
        read[Path(file).name] = np.asarray(mask)
    for name, ids in MAPS.items():
        np.testing.assert_array_equal(read[f"{Path(STEMS[name]).name}.png"], ids)


def test_datasets_reads_images_masks_and_the_card(export: Callable[..., Path], tmp_path: Path) -> None:
    out = export("huggingface")
    found = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path))
    assert found.num_rows == len(MAPS)
    names = found.features["concepts"].feature["label"].names
    assert names == LABELS
    for row in found:
        name = next(name for name in MAPS if row["uri"].endswith(f"/photos/{name}"))
        np.testing.assert_array_equal(np.asarray(row["mask"]), MAPS[name])
        assert row["image"].size == row["mask"].size
        for concept in row["concepts"]:
            own = MAPS[name] == concept["label"]
            assert concept["area"] == own.sum()
            assert concept["score"] == pytest.approx(float(score_map(MAPS[name])[own].mean()), abs=1e-4)
    card = (out / "README.md").read_text()
    assert "No person has checked these masks" in card
    assert "segment.refine: superpixels" in card
    assert str(out.parents[1]) not in card  # no paths of this machine


def test_images_stay_as_they_are_or_become_upright(export: Callable[..., Path], masks: Path) -> None:
    photos = masks.parent / "photos"
    out = export("coco") / "images" / "train"
    assert (out / "street" / "rings.jpg").read_bytes() == (photos / "street" / "rings.jpg").read_bytes()
    assert (out / "lines.png").read_bytes() == (photos / "lines.png").read_bytes()
    assert (out / "turned.jpg").read_bytes() != (photos / "turned.jpg").read_bytes()
    assert not Image.open(out / "turned.jpg").getexif().get(0x0112)
    assert (export("voc") / "VOCdevkit" / "VOC2012" / "JPEGImages" / "lines.jpg").read_bytes()[
        :2
    ] == b"\xff\xd8"


@pytest.mark.parametrize("form", MASK_FORMATS.names)
def test_300_concepts(form: str, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    if form in ("voc", "mmseg"):  # their files hold 8 bits
        with pytest.raises(SystemExit):
            run(many, form, out)
        assert (
            "at most 254 concepts, these masks have 300: choose another --format" in capsys.readouterr().err
        )
        assert not out.exists()
        return
    run(many, form, out)
    ids = np.arange(60 * 80).reshape(60, 80) // 16
    if form == "huggingface":
        found = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
        np.testing.assert_array_equal(np.asarray(found[0]["mask"]), ids)
        assert found[0]["concepts"][299] == {"label": 299, "area": 16, "score": None}
        return
    _, objects = read_with(form.replace("-", "_"), out, tmp_path / "read.npz")
    assert len(objects) == 300
    for each in objects:
        assert each.score is None  # the masks are not calibrated
        np.testing.assert_array_equal(each.mask, ids == int(each.concept.rpartition(" ")[2]))


def test_an_export_is_finished_verified_and_its_own(
    masks: Path, many: Path, export: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = export("coco")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["content"] == {"format": "coco", "labels": LABELS, "concepts": LABELS[1:]}
    assert manifest["counts"]["images"] == len(MAPS)
    assert not (out / "parts").exists()
    before = (out / "annotations" / "instances_train.json").stat().st_mtime_ns
    capsys.readouterr()
    run(masks, "coco", out)
    assert "nothing to do" in capsys.readouterr().err
    assert (out / "annotations" / "instances_train.json").stat().st_mtime_ns == before
    main(["verify", str(out)])
    assert "as committed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(many, "coco", out)
    assert "made with masks = " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(masks, "yolo", out)
    assert "format = coco, now yolo" in capsys.readouterr().err


def test_an_area_floor_and_no_images(masks: Path, tmp_path: Path) -> None:
    run(masks, "coco", tmp_path / "out", "--min-area", "20", "--without-images")
    coco = COCO(str(tmp_path / "out" / "annotations" / "instances_train.json"))
    areas = [annotation["area"] for annotation in coco.loadAnns(coco.getAnnIds())]
    assert min(areas) >= 20
    everything = sum(
        int((measure.label(ids, background=0, connectivity=2) > 0).sum()) for ids in MAPS.values()
    )
    assert 0 < sum(areas) < everything
    assert sorted(image["file_name"] for image in coco.loadImgs(coco.getImgIds())) == sorted(MAPS)
    assert not (tmp_path / "out" / "images").exists()


def test_a_run_that_was_killed_goes_on(
    masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Callable[..., Path]
) -> None:
    from reco_ray.mask_export import worker

    out, made = tmp_path / "out", []
    work = worker.ExportWorker.work

    def dies(self: worker.ExportWorker, name: str, rows: object) -> object:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(name)
        return work(self, name, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(worker.ExportWorker, "work", dies)
    with pytest.raises(SystemExit):
        run(masks, "coco", out)
    assert len(made) == 2
    monkeypatch.setattr(
        worker.ExportWorker, "work", lambda self, name, rows: made.append(name) or work(self, name, rows)
    )
    run(masks, "coco", out)
    assert made == ["000000", "000001", "000002"]
    file = "annotations/instances_train.json"
    assert (out / file).read_bytes() == (export("coco") / file).read_bytes()
    main(["verify", str(out)])


def test_images_that_have_gone_are_rejected_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = {f"{n}.jpg": np.full(SIZE, n % 2) for n in range(4)}
    masks = write_masks(tmp_path, maps, ["background", "cat"])
    photos = tmp_path / "photos"
    (photos / "0.jpg").unlink()
    (photos / "1.jpg").write_bytes(encoded(photograph(1).resize((20, 30))))
    run(masks, "coco", tmp_path / "out")
    assert "2 images, 1 instances, 2 rejected" in capsys.readouterr().err
    table = {row["uri"].rpartition("/")[2]: row["reason"] for row in rejected(tmp_path / "out")}
    assert table["0.jpg"] == "cannot be read: No such file or directory"
    assert table["1.jpg"] == "changed since it was segmented: 20 x 30 pixels instead of 80 x 60"
    for name in maps:
        (photos / name).unlink(missing_ok=True)
    with pytest.raises(SystemExit):
        run(masks, "coco", tmp_path / "none")
    assert "none of its 4 images can be exported (the first: " in capsys.readouterr().err
    for number, name in enumerate(maps):
        (photos / name).write_bytes(encoded(photograph(number).resize((80, 60))))
    run(masks, "coco", tmp_path / "none")  # as the line says
    assert "4 images" in capsys.readouterr().err


def rejected(out: Path) -> list[dict[str, str]]:
    from artifacts import rows

    return rows(out, "rejected")


def test_masks_that_are_damaged_or_unfinished_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = write_masks(tmp_path, {"a.jpg": np.zeros(SIZE, int)}, ["background", "cat"])
    out = tmp_path / "out"

    def error(*others: str) -> str:
        with pytest.raises(SystemExit):
            run(masks, "coco", out, *others)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line

    file = masks / "masks" / "a.jpg.png"
    whole = file.read_bytes()
    file.write_bytes(b"")
    assert "damaged, masks/a.jpg.png: cannot be decoded: `reco-ray verify` lists" in error()
    file.unlink()
    assert "damaged, masks/a.jpg.png: No such file or directory" in error()
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(buffer, "PNG")
    file.write_bytes(buffer.getvalue())
    assert "is not the mask that its table describes" in error()
    file.write_bytes(whole)
    (masks / "regions" / "000000.parquet").write_bytes(b"PAR1")
    assert "damaged, regions/000000.parquet:" in error()
    (masks / "manifest.json").rename(masks / "kept")
    assert "this masks artifact is unfinished" in error()
    (masks / "started.json").unlink()
    assert "this masks artifact is not there" in error()


def test_a_store_and_images_in_containers(tmp_path: Path) -> None:
    """Masks at s3://, of images in a tar, a table and the store, are exported to s3://."""
    maps = {f"{n}.jpg": MAPS["street/rings.jpg"] % (n + 2) for n in range(4)}
    masks = write_masks(tmp_path, maps, LABELS, part_size=2)
    data = [(tmp_path / "photos" / name).read_bytes() for name in maps]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.jpg", "1.jpg"):
            tar.add(tmp_path / "photos" / name, arcname=f"deep/{name}")
    pq.write_table(pa.table({"image": [data[2]]}), tmp_path / "t.parquet")
    with s3_store("masks"):
        storage.write_bytes("s3://masks/photos/3.jpg", data[3])
        uris = [
            *list_images(str(tmp_path / "a.tar")).table["uri"].to_pylist(),
            f"{tmp_path}/t.parquet#0",
            "s3://masks/photos/3.jpg",
        ]
        moved = dict(zip([str(tmp_path / "photos" / name) for name in maps], uris, strict=True))
        for file in masks.rglob("*"):
            if not file.is_file():
                continue
            content = file.read_bytes()
            if file.suffix == ".parquet" and file.name != "checksums.parquet":
                table = pq.read_table(file)
                named = pa.array([moved[uri] for uri in table["uri"].to_pylist()])
                sink = pa.BufferOutputStream()
                pq.write_table(table.set_column(table.schema.get_field_index("uri"), "uri", named), sink)
                content = sink.getvalue().to_pybytes()
            storage.write_bytes(f"s3://masks/made/{file.relative_to(masks)}", content)
        for form in ("coco", "huggingface"):
            out = f"s3://masks/{form}"
            main(["export-masks", "--masks", "s3://masks/made", "--format", form, "--out", out])
            main(["verify", out])
        document = json.loads(storage.read_bytes("s3://masks/coco/annotations/instances_train.json"))
        for number, image in enumerate(document["images"]):
            assert storage.read_bytes(f"s3://masks/coco/images/train/{image['file_name']}") == data[number]
        assert not [path for path in storage.list_tree("s3://masks/coco") if path.startswith("parts/")]
        rows = storage.read_table("s3://masks/huggingface/data/000").to_pylist()
        assert [row["image"]["bytes"] for row in rows] == data
        assert [row["uri"] for row in rows] == uris


def test_masks_of_a_segmenter_and_a_concept_called_background(tmp_path: Path) -> None:
    masks = write_masks(
        tmp_path,
        {"a.jpg": MAPS["street/rings.jpg"] % 3},
        ["background", "cat", "background"],
        labeller="segmenter",
    )
    run(masks, "huggingface", tmp_path / "out")
    (row,) = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert all(concept["score"] for concept in row["concepts"])
    found = datasets.load_dataset_builder(
        str(tmp_path / "out"), cache_dir=str(tmp_path / "cache")
    ).info.features
    assert found["concepts"].feature["label"].names == ["background", "cat", "background (concept)"]


def test_an_unknown_format_or_a_folder_in_use_is_one_line(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(masks, "yollo", tmp_path / "out")
    assert "unknown format of masks 'yollo': known are coco, coco-panoptic," in capsys.readouterr().err
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        run(masks, "coco", tmp_path)
    assert "is not empty and no exported-masks artifact: choose another --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(masks, "huggingface", tmp_path / "out", "--without-images")
    assert "a Hugging Face data set holds its images" in capsys.readouterr().err
    with pytest.raises(SystemExit) as raised:
        run(masks, "voc", tmp_path / "out", "--min-area", "5")
    assert "Pascal VOC has no instances that could be left out" in capsys.readouterr().err
    assert raised.value.code == 2


def test_a_data_set_is_pushed(
    masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def error(form: str, repository: str, place: str = str(out)) -> str:
        with pytest.raises(SystemExit):
            main(
                [
                    "export-masks",
                    "--masks",
                    str(masks),
                    "--format",
                    form,
                    "--out",
                    place,
                    "--push-to",
                    repository,
                ]
            )
        return capsys.readouterr().err

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # without a token of this machine
    monkeypatch.setenv("HF_TOKEN", "")
    assert "there is no token: set HF_TOKEN" in error("huggingface", "me/cats")
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    assert "only --format huggingface can be pushed" in error("coco", "me/cats")
    assert "expected owner/name" in error("huggingface", "me/cats/dogs")
    assert "needs --out on this machine" in error("huggingface", "me/cats", "s3://bucket/out")
    assert not out.exists()
    files: dict[str, bytes] = {}
    with hub("me/cats", files) as server:
        assert "HTTP status 403" in error("huggingface", "me/dogs")
        run(masks, "huggingface", out, "--push-to", "me/cats")
        assert f"pushed     {server.url}/datasets/me/cats" in capsys.readouterr().err
        assert sorted(files) == ["README.md", *(f"data/000/train-00000{part}.parquet" for part in range(3))]
        assert all((out / name).read_bytes() == data for name, data in files.items())
        names = storage.list_names("hf://datasets/me/cats/data/000", ".parquet")
        assert names == [f"train-00000{part}.parquet" for part in range(3)]
    main(["verify", str(out)])


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, but for `run`, which the tutorial's test has; its masks are written in its place."""
    monkeypatch.chdir(tmp_path)
    write_masks(tmp_path / "first", {"new/a.jpg": MAPS["street/rings.jpg"] % 3}, ["background", "cat", "dog"])
    for block in blocks(DOCS / "export-masks.md"):
        if block.language == "bash":
            for call in commands(block.text):
                if call[0] != "run":
                    main(call)
        elif block.language == "python" and "import fiftyone" not in block.text:
            exec(compile(block.text, "export-masks.md", "exec"), {})
    assert (tmp_path / "export" / "label-studio" / "tasks" / "000000.json").is_file()
    assert (tmp_path / "export" / "yolo" / "data.yaml").is_file()
