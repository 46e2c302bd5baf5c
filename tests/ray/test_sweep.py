"""Sweeps as a user runs them: with labels, without, with trials that fail, killed half-way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from images import write_photographs
from PIL import Image
from processes import kill_at_once

from reco_ray.cli import main
from reco_ray.cluster import plan_workers
from reco_ray.config import load_settings
from reco_ray.cosegmentation.stage import build_references
from reco_ray.evaluation.compare import Comparer, LoadSamples, Variant
from reco_ray.evaluation.metrics import confusion_matrix, scores
from reco_ray.evaluation.protocols import choose_protocol
from reco_ray.sweep.plan import Plan, open_plan
from reco_ray.sweep.shared import Shared
from reco_ray.sweep.stage import run_sweep
from reco_ray.sweep.trial import Record, read_records
from reco_ray.sweep.work import exemplar_view, image_view

pytestmark = pytest.mark.usefixtures("ray_cluster")

SMALL = {"references.image_size": 64, "segment.image_size": 64}
LABELLED = {
    "corpus": "corpus",
    "benchmark": "folder",
    "data": "labelled",
    "set": SMALL,
    "vary": {"references.exemplars": [2, 40, 3], "segment.refine": ["none", "pamr"]},
    "measure": ["augmentation_agreement"],
}
FREE = {
    "index": "labelled-out/index/000-conse-efficientnet-lite0",
    "images": "images",
    "vocabulary": "labelled/classes.txt",
    "set": SMALL,
    "vary": {"references.exemplars": [2, 3], "references.context_elimination": [True, False]},
    "search": "optuna",
    "trials": 4,
    "early_stopping": {"first": 3, "factor": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, labelled images, unlabelled images of which one is broken."""
    folder = tmp_path_factory.mktemp("sweep")
    write_photographs(folder / "corpus", 12)
    labels = folder / "labelled" / "labels"
    labels.mkdir(parents=True)
    for number, file in enumerate(write_photographs(folder / "labelled" / "images", 6)):
        ids = np.full(Image.open(file).size[::-1], number % 3, np.uint8)
        ids[: len(ids) // 2] = (number + 1) % 3
        Image.fromarray(ids).save(labels / f"{file.stem}.png")
    (folder / "labelled" / "classes.txt").write_text("dog\ncar\nsky\n")
    write_photographs(folder / "images", 9)
    (folder / "images" / "broken.jpg").write_bytes(b"no picture")
    return folder


def plan_of(folder: Path, name: str, fields: dict) -> Plan:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    return open_plan(str(folder / f"{name}.yaml"))


@pytest.fixture(scope="module")
def labelled(folder: Path, ray_cluster: None) -> Plan:
    """A sweep that ran once; two of its six trials ask for more exemplars than there are."""
    plan = plan_of(folder, "labelled", LABELLED)
    main(["sweep", str(folder / "labelled.yaml"), "--out", str(folder / "labelled-out")])
    return plan


def ended(out: Path) -> dict[str, tuple[Record, int]]:
    """The records of trials that need not run again, and when they were written."""
    found = {record.id: record for record in read_records(str(out)) if record.ended}
    return {name: (r, (out / "trials" / f"{name}.json").stat().st_mtime_ns) for name, r in found.items()}


# --- with labels --------------------------------------------------------------------------------------------


def test_failed_trials_stop_no_other_and_say_why(labelled: Plan, folder: Path) -> None:
    rows = pq.read_table(folder / "labelled-out" / "trials.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["finished"] * 4 + ["failed"] * 2
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, None, None]
    for row in rows[4:]:
        assert row["references.exemplars"] == 40
        assert "40 exemplars are asked for, but it has 12 images" in row["reason"]
    assert not (folder / "labelled-out" / "manifest.json").exists()


def test_a_trials_miou_is_that_of_the_evaluation(labelled: Plan, folder: Path, tmp_path: Path) -> None:
    """Features are kept in half precision, so a pixel here and there may differ."""
    rows = pq.read_table(folder / "labelled-out" / "trials.parquet").to_pylist()
    trials = {trial.id: trial for trial in map(labelled.trial, labelled.choices())}
    chosen = [row for row in rows if row["references.exemplars"] == 3]
    settings = trials[chosen[0]["trial"]].settings
    assert labelled.dataset is not None
    index = str(folder / "labelled-out" / "index" / "000-conse-efficientnet-lite0")
    build_references(index, labelled.dataset.vocabulary, str(tmp_path / "bank"), settings)
    ways = {
        row["trial"]: Variant(str(tmp_path / "bank"), trials[row["trial"]].settings.segment) for row in chosen
    }
    protocol = choose_protocol("whole", None, settings.segment)
    compare = Comparer(labelled.dataset, ways, protocol, settings, "cpu")
    load = LoadSamples(compare.models.encoder.transform, compare.models.encoder.stride, protocol, 10**6)
    matrices = {row["trial"]: np.zeros((3, 4), np.int64) for row in chosen}
    for compared in compare(load(pa.table({"uri": labelled.images, "number": range(len(labelled.images))}))):
        for name, predicted in compared.predicted.items():
            matrices[name] += confusion_matrix(compared.truth, predicted, 3)
    assert len(chosen) == 2
    for row in chosen:
        assert row["miou"] == pytest.approx(scores(matrices[row["trial"]])["miou"], abs=0.01)


def test_the_best_setting_is_accepted_and_says_that_labels_chose_it(labelled: Plan, folder: Path) -> None:
    best = pq.read_table(folder / "labelled-out" / "trials.parquet").to_pylist()[0]
    file = folder / "labelled-out" / "best.yaml"
    settings = load_settings("mini", str(file))
    assert settings.references.exemplars == best["references.exemplars"]
    assert settings.segment.refine == best["segment.refine"]
    assert settings.references.image_size == 64
    assert "tuned on labels" in file.read_text()
    assert "tuned on labels" in (folder / "labelled-out" / "report" / "index.html").read_text()


def test_run_again_only_failed_trials_are_tried(
    labelled: Plan, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ended(folder / "labelled-out")
    main(["sweep", str(folder / "labelled.yaml"), "--out", str(folder / "labelled-out")])
    assert len(before) == 4
    assert ended(folder / "labelled-out") == before
    output = capsys.readouterr()
    assert "folder, 6 images, tuned on labels" in output.out
    assert "| label-free score | Spearman correlation with miou |" in output.out
    assert "2 trials failed: the same command tries them again" in output.err


def test_another_sweep_is_not_mixed_in(
    labelled: Plan, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_of(folder, "other", LABELLED | {"sample": 3})
    with pytest.raises(SystemExit):
        main(["sweep", str(folder / "other.yaml"), "--out", str(folder / "labelled-out")])
    assert "was begun from something else" in capsys.readouterr().err


# --- without labels -----------------------------------------------------------------------------------------


def test_a_search_without_labels_stops_some_early_and_leaves_out_broken_images(
    labelled: Plan, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    plan = plan_of(folder, "free", FREE)
    assert plan.rungs == [3, 6, 10]
    told: list[Record] = []
    manifest, new, ranked = run_sweep(plan, str(tmp_path / "out"), told.append)
    assert new
    assert manifest is not None
    assert len(told) == 4
    assert manifest.counts["trials"] == len(ranked) == len({record.id for record in told})
    assert manifest.counts["finished"] + manifest.counts["stopped"] == len(ranked)
    for record in ranked:
        assert [rung.images for rung in record.rungs] == plan.rungs[: len(record.rungs)]
        assert (record.state == "finished") == (len(record.rungs) == 3)
        assert "miou" not in record.rungs[0].figures
    assert ranked[0].rungs[-1].used == 9
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "chosen without labels" in page

    before = ended(tmp_path / "out")
    again, new, _ = run_sweep(plan, str(tmp_path / "out"))
    assert not new
    assert again == manifest
    assert ended(tmp_path / "out") == before

    (
        tmp_path / "out" / "manifest.json"
    ).unlink()  # as if killed before its last line: nothing is computed again
    replayed, new, _ = run_sweep(plan, str(tmp_path / "out"))
    assert new
    assert replayed is not None
    assert before.items() <= ended(tmp_path / "out").items()


def test_what_trials_share_is_made_once(labelled: Plan, folder: Path) -> None:
    shared = ray.remote(num_cpus=0)(Shared).remote(plan_workers("cpu"))
    settings = labelled.base
    uris = [str(file) for file in sorted((folder / "corpus").glob("*.jpg"))]

    def ask(view: object, wanted: list[str]) -> list[ray.ObjectRef]:
        return ray.get(shared.encoded.remote(view, wanted))

    first = ask(exemplar_view(settings), uris[:5])
    assert ask(exemplar_view(settings), uris[:5]) == first
    assert ask(exemplar_view(settings), uris[3:8])[:2] == first[3:]
    assert ray.get(shared.encoded_count.remote()) == 8
    other = ask(image_view(settings), uris[:5])
    assert not set(other) & set(first)
    assert ray.get(first[2]).uri == uris[2]
    assert ray.get(first[2]).visual.shape[1:] == (2, 2)
    assert ray.get(other[2]).pixels is not None

    changed = settings.model_copy(update={"segment": settings.segment.model_copy(update={"refine": "crf"})})
    assert ask(image_view(changed), uris[:5]) == other
    ray.kill(shared)


# --- killed -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_a_killed_sweep_goes_on_where_it_stopped(labelled: Plan, folder: Path, tmp_path: Path) -> None:
    grid = {"references.exemplars": [2, 3, 4], "references.context_elimination": [True, False]}
    fields = LABELLED | {"corpus": None, "index": FREE["index"], "vary": grid, "measure": []}
    plan = plan_of(folder, "killed", {key: value for key, value in fields.items() if value is not None})
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from reco_ray.cli import main; main()", "sweep"]
    command += [str(folder / "killed.yaml"), "--out", str(out)]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "RAY_ADDRESS": ""}, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 150
            while not ended(out) and driver.poll() is None:
                assert time.monotonic() < deadline, "no trial ended"
                time.sleep(0.01)
        finally:
            kill_at_once(driver.pid)
            driver.wait()
    before = ended(out)
    assert 0 < len(before) < 6
    assert not (out / "manifest.json").exists()

    manifest, new, ranked = run_sweep(plan, str(out))
    assert new
    assert manifest is not None
    assert {key: manifest.counts[key] for key in ("trials", "finished")} == {"trials": 6, "finished": 6}
    assert before.items() <= ended(out).items()
    assert json.loads((out / "manifest.json").read_text())["kind"] == "sweep"
    assert all(record.state == "finished" for record in ranked)
