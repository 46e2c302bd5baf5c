"""Every benchmark in its official folder layout, made small here: classes, truth after merges, and what errors say."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photograph
from PIL import Image

from reco_ray.cli import main
from reco_ray.errors import RecoError
from reco_ray.evaluation.benchmark import benchmark_names, load_benchmark, open_benchmark
from reco_ray.evaluation.check import require_countable
from reco_ray.evaluation.confusion import IGNORE
from reco_ray.evaluation.dataset import Dataset

WIDTH, HEIGHT = 40, 30


@dataclass(frozen=True)
class Layout:
    """Where a benchmark's files lie, for names such as "a". ids: label id -> class that it must become.

    beside: files of the official download that are none of the benchmark's business. mode: of the label files.
    """

    images: str
    labels: str
    classes: int
    ids: dict[int, int]
    split: str | None = None
    beside: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    mode: str = "L"


CITYSCAPES = Layout(
    "leftImg8bit/val/ulm/{}_leftImg8bit.png",
    "gtFine/val/ulm/{}_gtFine_labelIds.png",
    classes=27,
    ids={0: IGNORE, 6: IGNORE, 7: 0, 21: 14, 33: 26},
    beside=["gtFine/val/ulm/{}_gtFine_color.png", "gtFine/val/ulm/{}_gtFine_instanceIds.png"],
)
VOC = Layout(
    "VOCdevkit/VOC2012/JPEGImages/{}.jpg",
    "VOCdevkit/VOC2012/SegmentationClass/{}.png",
    classes=20,
    ids={0: IGNORE, 1: 0, 20: 19, 255: IGNORE},
    split="VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
    beside=["VOCdevkit/VOC2012/JPEGImages/other_{}.jpg"],
    mode="P",
)
CONTEXT = Layout(
    "VOCdevkit/VOC2010/JPEGImages/{}.jpg",
    "VOCdevkit/VOC2010/SegmentationClassContext/{}.png",
    classes=59,
    ids={0: IGNORE, 1: 0, 59: 58},
    split="VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt",
)
# person, car, stop sign, orange, chair | building, road, tree, brick wall, sea
COCO = Layout(
    "images/val2017/{}.jpg",
    "annotations/val2017/{}.png",
    classes=27,
    ids={0: 9, 2: 11, 12: 8, 54: 2, 61: 3, 95: 20, 148: 21, 168: 22, 170: 18, 154: 26, 255: IGNORE},
    beside=["annotations/val2017/{}_labelTrainIds.png"],
)
LAYOUTS = {
    "cityscapes-27": CITYSCAPES,
    "cityscapes-19": Layout(
        CITYSCAPES.images,
        CITYSCAPES.labels,
        19,
        {4: IGNORE, 7: 0, 9: IGNORE, 11: 2, 17: 5, 18: IGNORE, 31: 16, 33: 18},
    ),
    "kitti-step": Layout(
        "training/image_02/0002/{}.png",
        "panoptic_maps/val/0002/{}.png",
        classes=19,
        ids={0: 0, 18: 18, 255: IGNORE},
        beside=["training/image_02/0000/{}.png"],
        mode="RGB",
    ),
    "coco-stuff-27": COCO,
    "coco-object": Layout(
        COCO.images, COCO.labels, 81, {0: 1, 10: 11, 12: 12, 89: 80, 91: 0, 181: 0, 255: 0}
    ),
    "voc20": VOC,
    "voc21": Layout(VOC.images, VOC.labels, 21, {0: 0, 1: 1, 20: 20, 255: IGNORE}, VOC.split),
    "context59": CONTEXT,
    "context60": Layout(CONTEXT.images, CONTEXT.labels, 60, {0: 0, 1: 1, 59: 59}, CONTEXT.split),
    "ade20k-150": Layout(
        "ADEChallengeData2016/images/validation/ADE_val_{}.jpg",
        "ADEChallengeData2016/annotations/validation/ADE_val_{}.png",
        classes=150,
        ids={0: IGNORE, 1: 0, 150: 149},
    ),
    "camvid": Layout("CamVid/val/{}.png", "CamVid/valannot/{}.png", 11, {0: 0, 10: 10, 11: IGNORE}),
    "idd-lite": Layout(
        "idd20k_lite/leftImg8bit/val/119/{}_image.jpg",
        "idd20k_lite/gtFine/val/119/{}_label.png",
        classes=7,
        ids={0: 0, 6: 6, 255: IGNORE},
        beside=["idd20k_lite/gtFine/val/119/{}_inst_label.png"],
    ),
    "folder": Layout(
        "images/{}.jpg",
        "labels/{}.png",
        classes=3,
        ids={0: 0, 2: 2, 255: IGNORE},
        texts={"classes.txt": "dog\ncar: automobile, motor car\nsky # above\n"},
    ),
}


def write_image(file: Path, number: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if file.suffix == ".png" else "JPEG"
    file.write_bytes(encoded(photograph(number).resize((WIDTH, HEIGHT)), kind))


def write_label(file: Path, ids: np.ndarray, mode: str = "L") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0] * 256)
    if mode == "RGB":  # panoptic maps: the ids in red, instance numbers in green and blue
        image = Image.merge("RGB", [image, image.point(lambda value: 7), image.point(lambda value: 200)])
    image.save(file)


def columns(ids: list[int]) -> np.ndarray:
    """Each id at least once, in columns."""
    return np.tile(np.resize(np.array(ids), WIDTH), (HEIGHT, 1))


def write_benchmark(name: str, data: Path) -> None:
    layout = LAYOUTS[name]
    for number, stem in enumerate("ab"):
        write_image(data / layout.images.format(stem), number)
        write_label(data / layout.labels.format(stem), columns(list(layout.ids)), layout.mode)
        for file in layout.beside:
            write_image(data / file.format(stem))
    texts = layout.texts | ({layout.split: "a\nb\n"} if layout.split else {})
    for file, text in texts.items():
        (data / file).parent.mkdir(parents=True, exist_ok=True)
        (data / file).write_text(text)


def truths(dataset: Dataset) -> list[np.ndarray]:
    return [dataset.truth(sample, (HEIGHT, WIDTH)) for sample in dataset.samples]


def opened(name: str, data: Path) -> Dataset:
    write_benchmark(name, data)
    return open_benchmark(name, str(data))


def test_every_benchmark_is_tested_here() -> None:
    assert {*LAYOUTS, "voc-coseg"} == set(benchmark_names())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_official_layout_is_read(name: str, tmp_path: Path) -> None:
    dataset = opened(name, tmp_path)
    layout = LAYOUTS[name]
    assert len(dataset.classes) == layout.classes == len(dataset.colours)
    assert [Path(s.image).name for s in dataset.samples] == [Path(layout.images.format(n)).name for n in "ab"]
    for truth in truths(dataset):
        np.testing.assert_array_equal(truth, columns(list(layout.ids.values())))


@pytest.mark.parametrize("name", sorted({*LAYOUTS} - {"folder"}))
def test_the_data_files_hold_together(name: str) -> None:
    benchmark = load_benchmark(name)
    assert not isinstance(benchmark.classes, str)
    positional = [entry for entry in benchmark.classes if entry.ids is None]
    assert len(benchmark.ids or positional) == len(positional)
    ids = [number for entry in benchmark.classes for number in entry.ids or ()]
    ids += [*(benchmark.ids or ()), *benchmark.ignore, *benchmark.background]
    assert len(ids) == len(set(ids))
    assert len(benchmark.colours) in (0, len(benchmark.classes))


def test_coco_stuff_counts_171_classes_as_27(tmp_path: Path) -> None:
    dataset = opened("coco-stuff-27", tmp_path)
    classes = [dataset.classes[number] for number in dataset.class_of]
    assert len(classes) == len(dataset.vocabulary.names) == 171
    found = dict(zip(dataset.vocabulary.names, classes, strict=True))
    assert found["zebra"] == "animal"
    assert found["person"] == "person"
    assert found["skyscraper"] == "building"
    assert found["fog"] == "water"


def test_picies_list_of_images_wins_where_there_is_one(tmp_path: Path) -> None:
    write_benchmark("coco-stuff-27", tmp_path)
    split = tmp_path / "curated" / "val2017" / "Coco164kFull_Stuff_Coarse.txt"
    split.parent.mkdir(parents=True)
    split.write_text("b\n")
    assert [Path(s.image).stem for s in open_benchmark("coco-stuff-27", str(tmp_path)).samples] == ["b"]


def test_a_background_is_class_0_and_no_concept(tmp_path: Path) -> None:
    dataset = opened("voc21", tmp_path)
    assert dataset.classes[:2] == ["background", "aeroplane"]
    assert dataset.vocabulary.background
    assert dataset.vocabulary.names[0] == "aeroplane"
    assert dataset.class_of == list(range(21))
    assert dataset.colours[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "count"), [("voc21", 21), ("coco-object", 81), ("context60", 60), ("voc20", 0), ("camvid", 0)]
)
def test_classes_with_background_are_those_of_the_label_maps(name: str, count: int, tmp_path: Path) -> None:
    dataset = opened(name, tmp_path)
    assert dataset.classes_with_background == (dataset.classes if count else None)
    assert len(dataset.classes_with_background or []) == count


def test_vegetation_shares_the_reference_of_trees(tmp_path: Path) -> None:
    for name in ("cityscapes-27", "cityscapes-19", "kitti-step"):
        concepts = {c.name: c for c in opened(name, tmp_path / name).vocabulary.concepts}
        assert concepts["vegetation"].alias == "tree"


def test_the_root_of_a_download_or_the_folder_in_it(tmp_path: Path) -> None:
    write_benchmark("voc20", tmp_path)
    inner = open_benchmark("voc20", str(tmp_path / "VOCdevkit" / "VOC2012"))
    assert len(inner.samples) == len(open_benchmark("voc20", str(tmp_path)).samples) == 2


def test_a_users_folder_has_the_words_of_its_classes_file(tmp_path: Path) -> None:
    dataset = opened("folder", tmp_path)
    assert dataset.classes == ["dog", "car", "sky"]
    assert dataset.vocabulary.concepts[1].synonyms == ("automobile", "motor car")
    (tmp_path / "classes.txt").write_text("background\ndog\nsky\n")
    dataset = open_benchmark("folder", str(tmp_path))
    assert dataset.classes == ["background", "dog", "sky"]
    assert dataset.vocabulary.names == ["dog", "sky"]
    np.testing.assert_array_equal(truths(dataset)[0], columns([0, 2, IGNORE]))


def test_voc_coseg_counts_what_each_mask_shows(tmp_path: Path) -> None:
    folders = load_benchmark("voc-coseg").folders
    for folder in folders:
        write_image(tmp_path / "images" / folder / "1.jpg")
        write_label(
            tmp_path / "masks" / folder / "1.png", columns([0, 255]), "RGB" if folder == "Cat" else "L"
        )
    dataset = open_benchmark("voc-coseg", str(tmp_path))
    assert len(dataset.samples) == len(dataset.classes) == 20
    by_folder = {sample.image.split("/")[-2]: sample for sample in dataset.samples}
    assert dataset.classes[by_folder["Table"].binary_of or 0] == "dining table"
    np.testing.assert_array_equal(
        dataset.truth(by_folder["Monitor"], (HEIGHT, WIDTH)),
        columns([IGNORE, dataset.classes.index("tv monitor")]),
    )
    assert dataset.classes_with_background == ["background", *dataset.classes]
    np.testing.assert_array_equal(
        dataset.add_background(dataset.truth(by_folder["Monitor"], (HEIGHT, WIDTH))), columns([0, 20])
    )
    (tmp_path / "images" / "Sofa" / "1.jpg").unlink()
    (tmp_path / "masks" / "Sofa" / "1.png").unlink()
    assert "masks/Sofa" in error_of("voc-coseg", tmp_path)


# --- errors -----------------------------------------------------------------------------------------------------


def error_of(name: str, data: Path) -> str:
    with pytest.raises(RecoError) as caught:
        truths(open_benchmark(name, str(data)))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_name_is_answered_with_those_there_are(tmp_path: Path) -> None:
    assert "voc20, voc21" in error_of("voc22", tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_folder_names_what_is_not_there(name: str, tmp_path: Path) -> None:
    assert f"{tmp_path}/" in error_of(name, tmp_path)


@pytest.mark.parametrize("name", ["cityscapes-27", "kitti-step", "voc20", "camvid", "idd-lite", "folder"])
@pytest.mark.parametrize("side", ["images", "labels"])
def test_a_missing_file_is_named(name: str, side: str, tmp_path: Path) -> None:
    write_benchmark(name, tmp_path)
    missing = tmp_path / getattr(LAYOUTS[name], side).format("b")
    missing.unlink()
    # what lies beside a benchmark's files is not looked for
    beside = (name, side) in (("kitti-step", "labels"), ("idd-lite", "images"))
    if beside:
        assert len(open_benchmark(name, str(tmp_path)).samples) == 1
    else:
        message = error_of(name, tmp_path)
        assert str(missing.parent / missing.stem) in message
        assert "missing" in message


def label_of(data: Path) -> Path:
    """A folder benchmark with one image, and its label file."""
    write_benchmark("folder", data)
    (data / "images" / "b.jpg").unlink()
    (data / "labels" / "b.png").unlink()
    return data / "labels" / "a.png"


def test_an_unknown_label_id_is_named(tmp_path: Path) -> None:
    write_label(label_of(tmp_path), columns([0, 3, 7]))
    assert error_of("folder", tmp_path) == (
        f"{tmp_path}/labels/a.png: label id 3 is none of folder (0 = dog, 1 = car, 2 = sky; 255 = not counted)"
    )


def test_ids_of_more_than_a_byte_are_unknown_too(tmp_path: Path) -> None:
    Image.fromarray(columns([0, 4000]).astype(np.uint16)).save(label_of(tmp_path))
    assert "label id 4000" in error_of("folder", tmp_path)


def test_a_label_file_of_another_size_is_named(tmp_path: Path) -> None:
    write_label(label_of(tmp_path), columns([0])[:, 1:])
    message = error_of("folder", tmp_path)
    assert message == f"{tmp_path}/labels/a.png: 39 x 30 pixels, but its image has 40 x 30"


def test_a_coloured_label_file_is_named(tmp_path: Path) -> None:
    write_label(label_of(tmp_path), columns([0]), "RGB")
    assert error_of("folder", tmp_path).startswith(f"{tmp_path}/labels/a.png: 3 channels")


def test_a_damaged_label_file_is_named(tmp_path: Path) -> None:
    label = label_of(tmp_path)
    label.write_bytes(label.read_bytes()[:60])
    assert error_of("folder", tmp_path).startswith(f"{tmp_path}/labels/a.png: ")
    label.write_bytes(b"no image")
    assert error_of("folder", tmp_path).startswith(f"{tmp_path}/labels/a.png: ")


@pytest.mark.parametrize(
    ("mode", "bits"), [("L", 8), ("L", 4), ("L", 2), ("P", 8), ("P", 2), ("I;16", 16), ("LA", 8), ("PA", 8)]
)
def test_files_of_one_number_a_pixel_are_read_however_they_are_saved(
    mode: str, bits: int, tmp_path: Path
) -> None:
    ids = columns([0, 2, 1])
    image = Image.fromarray(ids.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode in ("P", "PA"):
        image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    if mode in ("LA", "PA"):
        image = image.convert(mode)
    options = {"bits": bits} if bits < 8 else {}
    image.save(label_of(tmp_path), "TIFF" if mode == "PA" else "PNG", **options)
    (truth,) = truths(open_benchmark("folder", str(tmp_path)))
    np.testing.assert_array_equal(truth, ids)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_grey_that_was_saved_as_colours_is_read(mode: str, tmp_path: Path) -> None:
    ids = columns([0, 1, 255])
    Image.fromarray(ids.astype(np.uint8)).convert(mode).save(label_of(tmp_path))
    (truth,) = truths(open_benchmark("folder", str(tmp_path)))
    np.testing.assert_array_equal(truth, ids)


def test_one_bit_holds_two_classes(tmp_path: Path) -> None:
    Image.fromarray(columns([0, 1]).astype(bool)).save(label_of(tmp_path))
    assert set(np.unique(truths(open_benchmark("folder", str(tmp_path)))[0])) == {0, 1}


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("LA", "PNG", "has transparent pixels (LA)"),
        ("RGBA", "PNG", "has transparent pixels (RGBA)"),
        ("L", "JPEG", "is JPEG, a lossy format that changes label ids"),
        ("F", "TIFF", "is of mode F"),
    ],
)
def test_other_files_are_told_what_label_files_are(mode: str, kind: str, words: str, tmp_path: Path) -> None:
    label = label_of(tmp_path)
    image = Image.fromarray(columns([0, 1]).astype(np.uint8)).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.new("L", image.size, 0))
    image.save(label, kind)
    assert words in error_of("folder", tmp_path)


def test_what_systems_leave_beside_images_asks_for_no_label(tmp_path: Path) -> None:
    write_benchmark("folder", tmp_path)
    for name in (
        "images/Thumbs.db",
        "images/.DS_Store",
        "images/._a.jpg",
        "images/desktop.ini",
        "images/a.json",
    ):
        (tmp_path / name).write_bytes(b"x")
    for name in ("labels/._a.png", "labels/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    assert [Path(s.image).name for s in open_benchmark("folder", str(tmp_path)).samples] == ["a.jpg", "b.jpg"]


# --- before anything is built ----------------------------------------------------------------------------------


def checked(data: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a folder benchmark, or why it is refused."""
    try:
        require_countable(open_benchmark("folder", str(data)), 10**6)
    except RecoError as error:
        return str(error)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "ids", "words"),
    [
        ("background\ndog\n", [0, 255], "show background and no other class, 600 pixels do not count"),
        ("background\ndog\n", [255], "no pixel that counts"),
        ("dog\n", [0], "dog is the only class"),
        ("dog\ncat\n", [1], "show cat and no other class"),
        (
            "dog\ncat\ncow\nhen\n",
            [0, 2],
            "2 of 4 classes have no labelled pixel and are not in the mean: cat, hen",
        ),
        ("dog\ncat\n", [0, 7], "label id 7 is none of folder (0 = dog, 1 = cat; 255 = not counted)"),
    ],
)
def test_figures_that_would_be_none_are_known_before_anything_is_built(
    classes: str, ids: list[int], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_label(label_of(tmp_path), columns(ids))
    (tmp_path / "classes.txt").write_text(classes)
    assert words in checked(tmp_path, capsys)


def test_the_command_ends_before_it_makes_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_label(label_of(tmp_path), columns([0, 255]))
    (tmp_path / "classes.txt").write_text("background\ndog\n")
    words = ["--data", str(tmp_path), "--corpus", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "folder", *words])
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: folder: its label files (1) show background and no other class")
    assert not (tmp_path / "out").exists()


def test_nothing_is_said_of_labels_that_show_every_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_benchmark("folder", tmp_path)
    write_label(tmp_path / "labels" / "a.png", columns([0, 1, 2, 255]))
    assert checked(tmp_path, capsys) == ""


def test_images_that_cannot_be_used_are_known_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label_of(tmp_path)
    image = tmp_path / "images" / "a.jpg"
    image.write_bytes(image.read_bytes()[:300])
    assert checked(tmp_path, capsys).startswith(f"{image}: ")


def test_two_images_of_one_name_are_named(tmp_path: Path) -> None:
    label_of(tmp_path)
    write_image(tmp_path / "images" / "a.png")
    message = error_of("folder", tmp_path)
    assert "images/a.jpg" in message
    assert "images/a.png" in message
