"""Which masks a review shows, and what its verdicts say: precision with Wilson's interval, images to leave out."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mask_artifacts import write_masks

import reco_ray
from reco_ray.cli import main
from reco_ray.contents import MasksContent
from reco_ray.errors import RecoError
from reco_ray.evaluation.precision import wilson
from reco_ray.files.artifacts import read_manifest
from reco_ray.segmentation.review import choose_masks
from reco_ray.segmentation.verdicts import Verdict, bad_images, read_verdicts
from reco_ray.training.label import _left_out

LABELS = ["background", "cat", "dog", "sky"]
HEADER = "uri,concept,verdict,sample\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    random = np.random.default_rng(0)
    scores = random.uniform(0.1, 1, (20, 4)) * (random.uniform(size=(20, 4)) < [1, 0.8, 0.5, 0.3])
    write_masks(folder, scores.round(3).tolist(), LABELS)
    return folder


def regions(folder: Path) -> list[dict]:
    rows = pq.read_table(folder / "masks" / "regions").to_pylist()
    return [row for row in rows if row["label"]]


def chosen(folder: Path, **options):
    masks = str(folder / "masks")
    options = {"sample": 8, "unsure": 9, "seed": 0, **options}
    return choose_masks(masks, read_manifest(masks, MasksContent), **options)


def test_the_least_sure_masks_of_every_concept_are_shown(folder: Path) -> None:
    rows = regions(folder)
    review = chosen(folder, sample=0)
    assert review.masks == len(rows)
    shown = [item.row for item in review.items]
    assert len(shown) == 9
    for concept in ("cat", "dog", "sky"):
        lowest = sorted(row["score"] for row in rows if row["concept"] == concept)[:3]
        assert [row["score"] for row in shown if row["concept"] == concept] == lowest
    for item in review.items:
        others = pq.read_table(folder / "masks" / "regions").to_pylist()
        expected = {row["concept"] for row in others if row["uri"] == item.row["uri"]}
        assert {row["concept"] for row in item.others} == expected - {item.row["concept"]}


def test_a_sample_is_drawn_evenly_and_is_the_same_again(folder: Path) -> None:
    rows = {(row["uri"], row["label"]) for row in regions(folder)}
    counts = dict.fromkeys(rows, 0)
    for seed in range(300):
        drawn = [(item.row["uri"], item.row["label"]) for item in chosen(folder, unsure=0, seed=seed).items]
        assert len(set(drawn)) == 8
        for each in drawn:
            counts[each] += 1
    expected = 300 * 8 / len(rows)
    assert expected / 2.5 < min(counts.values())
    assert max(counts.values()) < 2.5 * expected
    first, again = chosen(folder), chosen(folder)
    assert first == again
    assert chosen(folder, seed=1) != first
    # What was drawn at random is not shown twice.
    keys = [(item.row["uri"], item.row["label"]) for item in first.items]
    assert len(set(keys)) == 17
    assert [item.sample for item in first.items] == ["random"] * 8 + ["unsure"] * 9
    everything = chosen(folder, sample=1000, unsure=1000).items
    assert len(everything) == len(rows)


def test_the_page_is_one_file_with_everything_inside(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--sample", "4", "--unsure", "6", "--out", str(tmp_path / "out")]
    main(["review", "--masks", str(folder / "masks"), *words])
    said = capsys.readouterr().err
    assert "4 of" in said
    assert "6 that are least sure" in said
    page = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r"(src|href)=[\"']?http", page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert len(data["items"]) == 10
    assert data["concepts"] == ["cat", "dog", "sky"]
    assert data["probabilities"]
    assert len(data["photos"]) == len({item["uri"] for item in data["items"]})
    for item in data["items"]:
        assert item["mask"].startswith("data:image/jpeg;base64,")
        assert 0 < item["share"] < 1


def test_names_of_images_cannot_leave_the_data(folder: Path, tmp_path: Path) -> None:
    write_masks(tmp_path, [[0, 0.5]], ["background", "</script><script>alert(1)</script>"])
    made = reco_ray.review(masks=tmp_path / "masks", out=tmp_path / "out")
    assert (made.drawn, made.unsure, made.masks) == (1, 0, 1)
    assert "<script>alert" not in Path(made.page).read_text()


def test_a_review_that_cannot_be_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecoError, match="this masks artifact is not there"):
        reco_ray.review(masks=tmp_path / "nothing", out=tmp_path / "out")
    write_masks(tmp_path, [[0.5, 0]], ["background", "cat"])
    with pytest.raises(RecoError, match="has no mask of a concept"):
        reco_ray.review(masks=tmp_path / "masks", out=tmp_path / "out")
    write_masks(tmp_path / "gone", [[0, 0.5]], ["background", "cat"])
    next((tmp_path / "gone" / "images").iterdir()).unlink()
    with pytest.raises(RecoError, match=r"000\.jpg: cannot be read: .*, though the masks are of it"):
        reco_ray.review(masks=tmp_path / "gone" / "masks", out=tmp_path / "out")


# --- verdicts -----------------------------------------------------------------------------------------------


def written(folder: Path, rows: list[tuple[str, ...]], name: str = "verdicts.csv") -> Path:
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("uri", "concept", "verdict", "sample", "score"))
        writer.writerows((*row, "0.5") for row in rows)
    return folder / name


def test_the_interval_is_wilsons() -> None:
    # Of Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
    for good, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(good, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(29, 29) == pytest.approx((0.8830, 1), abs=5e-5)


def test_verdicts_become_a_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"/{n}.jpg", "cat", "good" if n < 15 else "bad", "random") for n in range(20)]
    rows += [(f"/{n}.jpg", "dog", "unsure", "random") for n in range(3)]
    rows += [("/7.jpg", 'a "quoted", name', "bad", "unsure")]
    rows += [("/0.jpg", "cat", "bad", "random")]  # the last word counts
    file = written(tmp_path, rows)
    main(["evaluate", "--verdicts", str(file), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "| all masks, drawn at random | 14 | 6 | 3 | 70.0 | 48.1 to 85.5 |" in printed
    assert "| dog | 0 | 0 | 3 | - | - |" in printed
    assert "(no estimate) | 0 | 1 | 0 | 0.0 | 0.0 to 79.3 |" in printed
    results = json.loads((tmp_path / "out" / "verdicts.json").read_text())
    assert results["sample"]["precision"] == 0.7
    assert results["concepts"]["cat"] == results["sample"] | {"unsure": 0}
    table = pa.Table.from_pylist(
        [dict(zip(("uri", "concept", "verdict", "sample"), r, strict=True)) for r in rows]
    )
    pq.write_table(table, tmp_path / "verdicts.parquet")
    same = reco_ray.evaluate(verdicts=tmp_path / "verdicts.parquet", out=tmp_path / "out")
    assert same.sample.precision == 0.7
    assert bad_images(read_verdicts(str(file))) == [
        "/0.jpg",
        *(f"/{n}.jpg" for n in (15, 16, 17, 18, 19)),
        "/7.jpg",
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "lacks the column uri: expected uri, concept, verdict, sample"),
        ("uri,concept,verdict\n/a,cat,good\n", "lacks the column sample"),
        (HEADER, "has no verdicts"),
        (
            HEADER + "/a,cat,good,random\n/b,cat,fine,random\n",
            "line 3: verdict 'fine': expected good, bad, unsure",
        ),
        (HEADER + "/a,cat,good,chosen\n", "line 2: sample 'chosen': expected random, unsure"),
        (HEADER + "/a,,good,random\n", "line 2: concept is empty"),
        (HEADER + "/a,cat\n", "line 2: verdict None"),
        ("\udcff", "neither CSV in UTF-8 nor Parquet"),
        ("PAR1 or not", "damaged"),
    ],
)
def test_verdicts_of_another_form_are_one_line(tmp_path: Path, content: str, line: str) -> None:
    file = tmp_path / "verdicts.csv"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecoError) as error:
        read_verdicts(str(file))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_verdicts_and_a_benchmark_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, line in (
        ([], "give a benchmark and --data"),
        (["camvid"], "give a benchmark and --data"),
        (["camvid", "--data", "d", "--verdicts", "v"], "verdicts are evaluated by themselves"),
        (["--verdicts", str(tmp_path / "none.csv")], "no such file: the page of `reco-ray review` saves"),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", *words])
        assert line in capsys.readouterr().err


def test_images_with_bad_masks_are_left_out() -> None:
    table = pa.table({"uri": ["/a", "/b", "/c"], "size": [1, 2, 3]})
    bad = bad_images([Verdict("/b", "cat", "bad", "random"), Verdict("/c", "cat", "good", "random")])
    kept, digest = _left_out(table, [*bad, "/elsewhere"], "photos")
    assert kept["uri"].to_pylist() == ["/a", "/c"]
    assert digest == _left_out(table, bad, "photos")[1]
    assert digest != _left_out(table, ["/a"], "photos")[1]
    with pytest.raises(
        RecoError, match="photos: has none of the 1 images with bad masks, such as /elsewhere"
    ):
        _left_out(table, ["/elsewhere"], "photos")
    with pytest.raises(RecoError, match="none is left to train on"):
        _left_out(table, ["/a", "/b", "/c"], "photos")
