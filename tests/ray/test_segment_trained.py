"""Masks of trained segmenters over a source: as of `predict`, by several in one pass, resumed, and bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from images import photograph
from PIL import Image
from training_data import write_segmenter

import reco_ray
from reco_ray.cli import main
from reco_ray.corpus import load
from reco_ray.files.verify import verify
from reco_ray.training import Segmenter

pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process")]

SMALL = "smp:Segformer/tu-tf_efficientnet_lite0@decoder_segmentation_channels=64"
PLAIN = ["--set", "segment.refine=none", "--set", "segment.shard_size=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of several shapes, a damaged one, and three segmenters with random weights."""
    folder = tmp_path_factory.mktemp("trained")
    for number, size in enumerate([(80, 64), (64, 90), (80, 64), (200, 30), (80, 64), (41, 67)]):
        place = folder / "images" / ("deep" if number % 2 else "") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        photograph(number).resize(size).save(place)
    (folder / "images" / "broken.jpg").write_bytes(b"not a picture")
    write_segmenter(folder / "street" / "segmenter", 3, spec=SMALL)
    write_segmenter(folder / "rooms" / "segmenter", 5, image_size=96, background=True, spec=SMALL)
    write_segmenter(folder / "same" / "segmenter", 4, spec=SMALL)
    return folder


def segment(folder: Path, out: Path, *names: str, options: list[str] = PLAIN) -> None:
    given = [word for name in names for word in ("--segmenter", str(folder / name / "segmenter"))]
    main(["segment", *given, "--images", str(folder / "images"), "--out", str(out), *options])


def masks(out: Path) -> dict[str, np.ndarray]:
    """Name of the image -> its mask."""
    rows = pq.read_table(out / "regions", columns=["name", "mask"]).to_pylist()
    found = {row["name"]: row["mask"] for row in rows}
    return {name: np.asarray(Image.open(out / mask)) for name, mask in sorted(found.items())}


def test_several_segmenters_decode_once_and_label_as_each_does_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoded = load.decode_image, []

    def counted(data, **options):
        decoded.append(len(data))
        return decode(data, **options)

    monkeypatch.setattr(load, "decode_image", counted)
    segment(folder, tmp_path / "out", "street", "rooms", "same")
    assert len(decoded) == 7
    for name in ("street", "rooms", "same"):
        segmenter = Segmenter.from_artifact(str(folder / name / "segmenter"))
        out = tmp_path / "out" / name
        found = masks(out)
        assert sorted(found) == ["0.png", "2.png", "4.png", "deep/1.png", "deep/3.png", "deep/5.png"]
        rows = pq.read_table(out / "regions").to_pylist()
        for image, mask in found.items():
            labels, probabilities = segmenter.predict(folder / "images" / image)
            np.testing.assert_array_equal(mask, labels)
            for row in (row for row in rows if row["name"] == image):
                own = labels == row["label"]
                assert row["concept"] == segmenter.labels[row["label"]]
                assert row["area"] == own.sum()
                assert row["score"] == pytest.approx(probabilities[own].mean(), abs=1e-4)
        manifest = verify(str(out)).manifest
        assert verify(str(out)).differences == []
        assert manifest.counts == {"images": 7, "segmented": 6, "rejected": 1}
        assert [row["uri"][-10:] for row in pq.read_table(out / "rejected").to_pylist()] == ["broken.jpg"]
        page = (out / "report" / "index.html").read_text()
        assert "how sure the model is" in page
        assert "Segmenter: smp:" in page
        assert len(list((out / "overlays").rglob("*.jpg"))) == 6


def test_what_a_kill_left_is_finished_and_nothing_else_is_done(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    segment(folder, tmp_path / "out", "street", "same")
    before = masks(tmp_path / "out" / "street")
    for name, part in (("street", "000000"), ("same", "000002")):
        (tmp_path / "out" / name / "manifest.json").unlink()
        (tmp_path / "out" / name / "regions" / f"{part}.parquet").unlink()
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("masks/**/*.png")}
    segment(folder, tmp_path / "out", "street", "same")
    written = {f for f in times if f.stat().st_mtime_ns != times[f]}
    assert 0 < len(written) < len(times)
    assert {f.relative_to(tmp_path / "out").parts[0] for f in written} == {"street", "same"}
    again = masks(tmp_path / "out" / "street")
    assert again.keys() == before.keys()
    assert all((again[name] == before[name]).all() for name in before)
    assert not verify(str(tmp_path / "out" / "same")).differences
    capfd.readouterr()
    segment(folder, tmp_path / "out", "street", "same")
    assert capfd.readouterr().err.count("nothing to do") == 2


def test_refinement_and_background_are_those_of_the_settings(folder: Path, tmp_path: Path) -> None:
    def made(name: str, out: str, *settings: str) -> dict[str, np.ndarray]:
        changed = [word for each in settings for word in ("--set", f"segment.{each}")]
        segment(folder, tmp_path / out, name, options=[*PLAIN, *changed])
        return masks(tmp_path / out)

    plain = made("rooms", "plain")
    without = made("rooms", "without", "background=false")
    content = json.loads((tmp_path / "without" / "manifest.json").read_text())["content"]
    assert content["labels"] == ["1", "2", "3", "4"]
    for name, mask in plain.items():
        assert (without[name][mask > 0] == mask[mask > 0] - 1).all()
    unsure = made("rooms", "unsure", "background_threshold=0.99")
    assert sum((mask == 0).sum() for mask in unsure.values()) > sum((m == 0).sum() for m in plain.values())
    added = made("street", "added", "background=true", "background_threshold=0.4")
    bare = made("street", "bare")
    for name, mask in added.items():
        assert (mask[mask > 0] == bare[name][mask > 0] + 1).all()
    assert 0 < np.mean([(mask == 0).mean() for mask in added.values()]) < 1
    smooth = made("street", "smooth", "refine=superpixels")
    assert 0.3 < np.mean([(smooth[name] == bare[name]).mean() for name in bare]) < 1


def test_python_returns_what_became_of_each(folder: Path, tmp_path: Path) -> None:
    images, options = folder / "images", {"refine": "none"}
    one = reco_ray.segment(
        segmenter=folder / "same" / "segmenter", images=images, out=tmp_path / "one", **options
    )
    assert not isinstance(one, list)
    assert one.uri == str(tmp_path / "one")
    uris = [folder / name / "segmenter" for name in ("same", "rooms")]
    several = reco_ray.segment(segmenter=uris, images=images, out=tmp_path / "two", **options)
    assert isinstance(several, list)
    assert [each.uri for each in several] == [str(tmp_path / "two" / name) for name in ("same", "rooms")]


@pytest.mark.parametrize(
    ("given", "status", "line"),
    [
        ([], 2, "give either --references"),
        (["--segmenter", "street/segmenter", "--references", "street/segmenter"], 2, "give either"),
        (["--segmenter", "nowhere"], 1, "nowhere: this segmenter artifact is not there"),
        (["--segmenter", "unfinished"], 1, "unfinished: this segmenter artifact is unfinished: run the"),
        (["--segmenter", "images"], 1, "images: this segmenter artifact is not there"),
        (["--segmenter", "damaged"], 1, "damaged: its weights are not those of a smp:"),
        (["--segmenter", "street/segmenter", "--segmenter", "street/segmenter"], 2, "are named 'street'"),
        (["--segmenter", "street/segmenter", "--set", "segment.background=true"], 1, "needs a threshold"),
        (["--segmenter", "street/segmenter", "--refine", "blur"], 1, "setting segment.refine"),
        (["--segmenter", "street/segmenter", "--device", "cuda"], 1, "no GPU"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    given: list[str],
    status: int,
    line: str,
) -> None:
    (folder / "unfinished").mkdir(exist_ok=True)
    (folder / "unfinished" / "started.json").write_text("{}")
    write_segmenter(folder / "damaged", 3, stored=4, spec=SMALL)
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as exit_:
        main(["segment", *given, "--images", "images", "--out", str(tmp_path / "out")])
    errors = [each for each in capfd.readouterr().err.splitlines() if each.startswith("error: ")]
    assert exit_.value.code == status
    assert len(errors) == 1
    assert line in errors[0]
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_network_whose_package_is_missing_is_named_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(SystemExit):
        segment(folder, tmp_path / "out", "street")
    assert 'pip install "reco-ray[train]"' in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
