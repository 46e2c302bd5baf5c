"""Evaluation as a user runs it: a folder of images with labels, in one process and on two nodes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from clusters import two_nodes
from images import write_photographs
from in_process import stages_in_process
from PIL import Image
from safetensors.torch import save as save_tensors

from reco_ray.cli import main
from reco_ray.config import load_settings
from reco_ray.contents import SegmenterContent
from reco_ray.corpus.load import whole_image_loader
from reco_ray.errors import RecoError
from reco_ray.evaluation.benchmark import open_benchmark
from reco_ray.evaluation.compare import Compared, Comparer, Trained, Variant, sample_loader
from reco_ray.evaluation.confusion import IGNORE, scores
from reco_ray.evaluation.dataset import Dataset, Sample
from reco_ray.evaluation.evaluation_protocol import PROTOCOL_NAMES, Protocol, choose_protocol
from reco_ray.evaluation.jaccard import CosegmentWorker, square_loader
from reco_ray.evaluation.score_variants import EvaluateWorker, score
from reco_ray.evaluation.stage import RECO, RECO_PLUS, trained_for, variants
from reco_ray.files.artifacts import ArtifactWriter
from reco_ray.models.dense import DenseModels
from reco_ray.segmentation.mask_worker import MaskSet, MaskWorker
from reco_ray.segmentation.palette import palette
from reco_ray.segmentation.stage import ReferenceLabeller
from reco_ray.training import Segmenter
from reco_ray.training.network import build_network
from reco_ray.vocabulary import Concept, Vocabulary

OVERRIDES = [
    "references.image_size=64",
    "segment.image_size=64",
    "references.exemplars=3",
    "segment.refine=pamr",
]
SETTINGS = load_settings("mini", overrides=OVERRIDES)
SEGMENT = SETTINGS.segment.model_copy(update={"background": False})
CLASSES = ["dog", "car", "sky"]


@pytest.fixture(scope="module", autouse=True)
def _two_nodes() -> Iterator[None]:
    with two_nodes():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """34 images, three shards; the left third of every label is ignored, the rest one class above another."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_photographs(folder / "corpus", 12)
    labels = folder / "data" / "labels"
    labels.mkdir(parents=True)
    for number, file in enumerate(write_photographs(folder / "data" / "images", 34)):
        width, height = Image.open(file).size
        ids = np.full((height, width), number % 3, np.uint8)
        ids[: height // 2] = (number + 1) % 3
        ids[:, : width // 3] = IGNORE
        Image.fromarray(ids).save(labels / f"{file.stem}.png")
    (folder / "data" / "classes.txt").write_text("\n".join(CLASSES))
    return folder


@pytest.fixture(scope="module")
def dataset(data: Path) -> Dataset:
    return open_benchmark("folder", str(data / "data"))


@pytest.fixture(scope="module")
def out(data: Path) -> Path:
    """A finished evaluation, computed in this process."""
    out = data / "out"
    words = ["--data", str(data / "data"), "--corpus", str(data / "corpus"), "--out", str(out)]
    with stages_in_process():
        main(["evaluate", "folder", *words, *(word for setting in OVERRIDES for word in ("--set", setting))])
    return out


@pytest.fixture(scope="module")
def binary(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three images of one class each, whose masks are the upper half."""
    folder = tmp_path_factory.mktemp("binary")
    samples = []
    for number, sample in enumerate(dataset.samples[:3]):
        with Image.open(sample.image) as image:
            mask = np.zeros(image.size[::-1], np.uint8)
        mask[: len(mask) // 2] = 255
        Image.fromarray(mask).save(folder / f"{number}.png")
        samples.append(Sample(sample.image, str(folder / f"{number}.png"), binary_of=number))
    return replace(dataset, samples=samples)


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def matrix_of(out: Path, variant: str) -> np.ndarray:
    """The confusion matrix of a variant as it was written."""
    matrix = np.zeros((3, 4), np.int64)
    for row in pq.read_table(out / "confusion.parquet").to_pylist():
        if row["variant"] == variant:
            matrix[CLASSES.index(row["truth"]), CLASSES.index(row["predicted"])] = row["pixels"]
    return matrix


def test_every_counted_pixel_is_in_every_matrix(data: Path, out: Path) -> None:
    truth = [np.asarray(Image.open(file)) for file in (data / "data" / "labels").iterdir()]
    expected = [sum(int((ids == label).sum()) for ids in truth) for label in range(3)]
    for variant in results(out)["variants"]:
        assert matrix_of(out, variant).sum(axis=1).tolist() == expected


def test_the_figures_are_those_of_the_matrices(out: Path) -> None:
    found = results(out)["variants"]
    assert list(found) == ["language only", "reference only", "ReCo", "ReCo + pamr"]
    for variant, figures in found.items():
        expected = scores(matrix_of(out, variant))
        assert figures["miou"] == expected["miou"] > 0
        assert figures["pixel_accuracy"] == expected["pixel_accuracy"]
        assert list(figures["iou"].values()) == expected["iou"]
        assert list(figures["mask_jaccard_by_class"]) == CLASSES
        assert 0 < figures["mask_jaccard"] < 1
        assert figures["miou_with_background"] is None


def test_results_say_where_they_come_from(out: Path) -> None:
    found = results(out)
    assert found["images"] == 34
    assert found["settings"] == SETTINGS.model_dump(mode="json", exclude={"placement"})
    assert found["protocol"]["name"] == "whole"
    assert found["index"] == str(out / "index")
    assert found["machine"]["torch"] == torch.__version__
    assert found["command"]


def test_the_report_is_one_page_with_the_worst_and_best_images(out: Path) -> None:
    page = (out / "report" / "index.html").read_text()
    assert "://" not in page
    assert page.count("data:image/jpeg;base64,") == 12 * 3
    for text in ("Worst images of ReCo", "Best images of ReCo", "pixel accuracy", "mask Jaccard", *CLASSES):
        assert text in page


def test_two_nodes_count_the_same_pixels(dataset: Dataset, out: Path) -> None:
    ways = {name: Variant(str(out / "references"), way) for name, way in variants(SEGMENT).items()}
    assert len(ray.nodes()) == 2
    measured = score(dataset, ways, choose_protocol("whole", None, SEGMENT), SETTINGS)
    assert list(measured.matrices) == list(results(out)["variants"])
    for variant, matrix in measured.matrices.items():
        np.testing.assert_array_equal(matrix, matrix_of(out, variant))


def untrained(folder: Path, labels: list[str]) -> str:
    """A segmenter artifact whose network never saw an image."""
    spec = "smp:FPN/tu-tf_efficientnet_lite0@decoder_pyramid_channels=64,decoder_segmentation_channels=32"
    network = build_network(spec, len(labels), initial="packaged")
    writer = ArtifactWriter(str(folder), SegmenterContent, {})
    assert writer.finished() is None
    (folder / "weights.safetensors").write_bytes(save_tensors(network.module.state_dict()))
    background = labels[0] == "background"
    concepts = tuple(Concept(name=label) for label in labels[background:])
    content = SegmenterContent(
        architecture=spec,
        labels=labels,
        background=background,
        vocabulary=Vocabulary(concepts=concepts, background=background),
        image_size=64,
    )
    writer.commit({}, content)
    return str(folder)


def test_a_segmenter_is_scored_beside_what_made_its_labels(
    dataset: Dataset, out: Path, tmp_path: Path
) -> None:
    segmenter = untrained(tmp_path / "segmenter", CLASSES)
    ways = {RECO: Variant(str(out / "references"), SEGMENT), RECO_PLUS: Trained(segmenter)}
    few = replace(dataset, samples=dataset.samples[:4])
    compare = Comparer(few, ways, choose_protocol("whole", None, SEGMENT), SETTINGS, "cpu")
    encoder = compare.models.encoder
    load = sample_loader(encoder.transform, encoder.stride, choose_protocol("whole", None, SEGMENT), 10**6)
    opened = Segmenter.from_artifact(segmenter)
    for found in compare(load(pa.table({"uri": [s.image for s in few.samples], "number": range(4)}))):
        expected, _ = opened.predict(found.pixels)  # at the size that the models see, here that of training
        predicted = Image.fromarray(found.predicted[RECO_PLUS].astype(np.uint8))
        agree = np.asarray(predicted.resize(expected.shape[::-1], Image.Resampling.NEAREST)) == expected
        assert found.predicted[RECO_PLUS].shape == found.truth.shape
        assert agree.mean() > 0.8
        assert (found.predicted[RECO_PLUS] != found.predicted[RECO]).any()


def test_a_segmenter_of_other_classes_is_refused(
    data: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter = untrained(tmp_path / "segmenter", ["dog", "cat"])
    words = ["--data", str(data / "data"), "--index", str(out / "index"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["evaluate", "folder", *words, "--segmenter", segmenter])
    assert "was trained for dog, cat, ..., but folder has dog, car, sky" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_index_or_a_corpus_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--corpus", "a", "--index", "b"]):
        with pytest.raises(SystemExit) as caught:
            main(["evaluate", "voc20", "--data", "c", *words])
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith("error: give either --corpus")


# --- what a worker does, here without Ray ----------------------------------------------------------------------


def compared(dataset: Dataset, numbers: list[int], out: Path, protocol: Protocol) -> list[Compared]:
    compare = Comparer(dataset, {RECO: Variant(str(out / "references"), SEGMENT)}, protocol, SETTINGS, "cpu")
    encoder = compare.models.encoder
    load = sample_loader(encoder.transform, encoder.stride, protocol, 10**6)
    return list(
        compare(load(pa.table({"uri": [dataset.samples[n].image for n in numbers], "number": numbers})))
    )


@pytest.mark.parametrize("name", PROTOCOL_NAMES)
def test_protocols_say_what_is_seen_and_counted(dataset: Dataset, out: Path, name: str) -> None:
    side = {"whole": 64, "reco": 64, "mmseg": 256}[name]
    found = compared(dataset, [2, 5], out, choose_protocol(name, side, SEGMENT))
    assert [entry.number for entry in found] == [2, 5]
    for entry in found:
        with Image.open(dataset.samples[entry.number].image) as image:
            size = (64, 64) if name == "reco" else image.size[::-1]
        assert entry.truth.shape == entry.predicted[RECO].shape == size
        assert min(entry.pixels.shape[:2]) == side
        assert set(np.unique(entry.predicted[RECO])) <= {0, 1, 2}


def test_a_label_file_of_another_size_is_named(dataset: Dataset, out: Path, tmp_path: Path) -> None:
    Image.new("L", (5, 4)).save(tmp_path / "small.png")
    wrong = replace(dataset, samples=[Sample(dataset.samples[0].image, str(tmp_path / "small.png"))])
    with pytest.raises(RecoError, match=r"small\.png: 5 x 4 pixels, but its image has"):
        compared(wrong, [0], out, choose_protocol("whole", None, SEGMENT))


def test_an_image_that_cannot_be_used_is_named(dataset: Dataset, out: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    wrong = replace(dataset, samples=[Sample(str(tmp_path / "broken.jpg"), dataset.samples[0].label)])
    with pytest.raises(RecoError, match=r"broken\.jpg: not an image that can be decoded"):
        compared(wrong, [0], out, choose_protocol("whole", None, SEGMENT))


def test_cosegmentation_of_a_classs_own_images(binary: Dataset, out: Path) -> None:
    """A mask of the upper half of the image: half of what is above the mean lies in it, more or less."""
    samples = [replace(sample, binary_of=0) for sample in binary.samples]
    dogs = replace(binary, samples=samples)
    ways = variants(SEGMENT)
    worker = CosegmentWorker(dogs, str(out / "references"), ways, SETTINGS)
    worker.set_up("cpu")
    load = square_loader(DenseModels.load(SETTINGS.models).encoder.transform, SETTINGS)
    found = worker.work("dog", load(pa.table({"uri": [s.image for s in samples], "number": range(3)})))
    assert found.name == "dog"
    assert list(found.jaccard) == list(ways)
    assert all(0.1 < value < 0.9 for value in found.jaccard.values())
    assert found.jaccard["ReCo"] != found.jaccard["language only"]


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_masks_are_measured_as_the_segment_stage_writes_them(
    binary: Dataset, out: Path, tmp_path: Path, refine: str
) -> None:
    """The background, too, and the artifact is read by the columns `uri` and `name` of its regions alone."""
    # At the preset's threshold everything in these drawings is background.
    chosen = SETTINGS.segment.model_copy(update={"refine": refine, "background_threshold": 0.2})
    settings = SETTINGS.model_copy(update={"segment": chosen.model_copy(update={"background": True})})
    protocol, bank = choose_protocol("whole", None, chosen), str(out / "references")
    uris = [sample.image for sample in binary.samples]
    encoder = DenseModels.load(SETTINGS.models).encoder
    evaluate = EvaluateWorker(binary, {RECO: Variant(bank, chosen)}, protocol, SETTINGS, None)
    evaluate.set_up("cpu")
    load = sample_loader(encoder.transform, encoder.stride, protocol, 10**6)
    measured = evaluate.work("0", load(pa.table({"uri": uris, "number": range(3)})))
    labels = ["background", *binary.vocabulary.names]
    labeller = ReferenceLabeller(settings, bank, None, len(labels))
    masks = MaskSet(str(tmp_path), labeller, labels, palette(len(labels), background=True))
    write = MaskWorker([masks], overlays=False)
    write.set_up("cpu")
    load = whole_image_loader(encoder.transform, encoder.stride, settings.segment)
    write.work("000000", load(pa.table({"uri": uris, "name": ["a/0.jpg", "a/1.jpg", "b.jpg"]})))

    regions = pq.read_table(tmp_path / "regions").to_pylist()
    names = {row["uri"]: row["name"] for row in regions}
    total, found = np.zeros((4, 4), np.int64), set()
    for number, sample in enumerate(binary.samples):
        label = np.asarray(Image.open(tmp_path / "masks" / f"{names[sample.image]}.png")).astype(int)
        mask = np.asarray(Image.open(sample.label)) > 0
        own = label == number + 1
        expected = (own & mask).sum() / (own | mask).sum()
        assert measured.jaccards[RECO][number] == {number + 1: pytest.approx(expected)}
        cells = np.where(mask, number + 1, 0) * 4 + label
        total += np.bincount(cells.reshape(-1), minlength=16).reshape(4, 4)
        found |= set(np.unique(label))
    np.testing.assert_array_equal(np.array(measured.with_background[RECO])[:, :4], total)
    assert 0 in found
    assert len(found) > 1


def test_a_segmenter_for_binary_masks_may_have_a_background(
    binary: Dataset, dataset: Dataset, out: Path, tmp_path: Path
) -> None:
    with_one = untrained(tmp_path / "with", ["background", *CLASSES])
    without = untrained(tmp_path / "without", CLASSES)
    ways = {"with": trained_for(with_one, binary), "without": trained_for(without, binary)}
    protocol = choose_protocol("whole", None, SEGMENT)
    compare = Comparer(binary, ways, protocol, SETTINGS, "cpu")
    load = sample_loader(compare.models.encoder.transform, compare.models.encoder.stride, protocol, 10**6)
    uris = [sample.image for sample in binary.samples]
    labels: set[int] = set()
    for found in compare(load(pa.table({"uri": uris, "number": range(3)}))):
        full = found.with_background
        assert full is not None
        assert set(np.unique(found.predicted["with"])) <= {0, 1, 2}
        concepts = full.predicted["with"] > 0
        np.testing.assert_array_equal(full.predicted["with"][concepts], found.predicted["with"][concepts] + 1)
        np.testing.assert_array_equal(full.predicted["without"], found.predicted["without"] + 1)
        labels |= set(np.unique(full.predicted["with"]))
    assert 0 in labels
    with pytest.raises(RecoError, match="was trained for background, dog"):
        trained_for(with_one, dataset)
