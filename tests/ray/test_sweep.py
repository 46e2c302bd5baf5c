"""Sweeps as a user runs them: with labels, without, with trials that fail, killed half-way."""

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from images import write_photographs
from PIL import Image

from reco_ray.cli import main
from reco_ray.config import load_settings
from reco_ray.cosegmentation.stage import build_references
from reco_ray.distributed.parts import R, Worker
from reco_ray.distributed.workers import plan_workers
from reco_ray.evaluation.compare import Comparer, Variant, sample_loader
from reco_ray.evaluation.confusion import confusion_matrix, scores
from reco_ray.evaluation.evaluation_protocol import choose_protocol
from reco_ray.files.verify import verify
from reco_ray.sweeps.encoded_images import exemplar_view, image_view
from reco_ray.sweeps.run_trial import TrialRecord, read_records
from reco_ray.sweeps.shared_tasks import SharedTasks
from reco_ray.sweeps.stage import run_sweep
from reco_ray.sweeps.sweep_plan import SweepPlan, open_plan

pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process")]

SMALL = {"references.image_size": 64, "segment.image_size": 64}
LABELLED = {
    "corpus": "corpus",
    "benchmark": "folder",
    "data": "labelled",
    "set": SMALL,
    "vary": {"references.exemplars": [2, 40, 4, 3], "segment.refine": ["none", "pamr"]},
    "measure": ["augmentation_agreement"],
}
FREE = {
    "index": "labelled-out/index/000-conse-efficientnet-lite0",
    "images": "images",
    "vocabulary": "labelled/classes.txt",
    "set": {**SMALL, "segment.calibrate": 4},  # over the images themselves
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


def plan_of(folder: Path, name: str, fields: dict) -> SweepPlan:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    return open_plan(str(folder / f"{name}.yaml"))


@dataclass(frozen=True)
class Finished:
    """A sweep that has ended. printed: on standard output."""

    plan: SweepPlan
    out: Path
    printed: str


@pytest.fixture(scope="module")
def labelled(folder: Path) -> Finished:
    """Eight trials, of which two ask for more exemplars than there are."""
    plan = plan_of(folder, "labelled", LABELLED)
    out = folder / "labelled-out"
    printed = io.StringIO()
    with redirect_stdout(printed):
        main(["sweep", str(folder / "labelled.yaml"), "--out", str(out)])
    return Finished(plan, out, printed.getvalue())


def kill_after_a_trial(words: list[str], out: Path, log: Path) -> None:
    """Starts a command in a process of its own, on the tests' cluster, and kills it once a trial has ended."""
    command = [sys.executable, "-c", "from reco_ray.cli import main; main()", *words]
    address = ray.get_runtime_context().gcs_address
    with log.open("wb") as file:
        driver = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env={**os.environ, "RAY_ADDRESS": address},
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 150
            while not ended(out):
                assert time.monotonic() < deadline, "no trial ended"
                assert driver.poll() is None, log.read_text()
                time.sleep(0.01)
        finally:
            driver.kill()
            driver.wait()


def ended(out: Path) -> dict[str, tuple[TrialRecord, int]]:
    """The records of trials that need not run again, and when they were written."""
    found = {record.id: record for record in read_records(str(out)) if record.ended}
    return {name: (r, (out / "trials" / f"{name}.json").stat().st_mtime_ns) for name, r in found.items()}


# --- with labels --------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_a_killed_sweep_goes_on_where_it_stopped(folder: Path) -> None:
    plan_of(folder, "killed", LABELLED)
    out = folder / "killed-out"
    words = ["sweep", str(folder / "killed.yaml"), "--out", str(out)]
    kill_after_a_trial(words, out, folder / "log")
    before = ended(out)
    main(words)
    after = ended(out)
    assert 0 < len(before) < len(after) == 6
    assert before.items() <= after.items()


def test_the_result_says_what_was_compared(labelled: Finished) -> None:
    assert len(ended(labelled.out)) == 6
    assert "folder, 6 images, tuned on labels" in labelled.printed
    assert "| label-free score | Spearman correlation with miou |" in labelled.printed


def test_failed_trials_stop_no_other_and_say_why(labelled: Finished, folder: Path) -> None:
    rows = pq.read_table(labelled.out / "trials.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["finished"] * 6 + ["failed"] * 2
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6, None, None]
    for row in rows[6:]:
        assert row["references.exemplars"] == 40
        assert "40 exemplars are asked for, but it has 12 images" in row["reason"]
    assert not (labelled.out / "manifest.json").exists()


def run_here(shards: dict, load: Callable, worker: Worker[R], workers: object, meter: object) -> Iterator[R]:
    """`run_shards` in this process: starting more of them would take longer than the work."""
    worker.set_up("cpu")
    return (worker.work(name, load(shard)) for name, shard in shards.items())


def test_a_trials_miou_is_that_of_the_evaluation(
    labelled: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features are kept in half precision, so a pixel here and there may differ."""
    monkeypatch.setattr("reco_ray.distributed.pool.run_shards", run_here)
    plan = labelled.plan
    assert plan.dataset is not None
    rows = pq.read_table(labelled.out / "trials.parquet").to_pylist()
    trials = {trial.id: trial for trial in map(plan.trial, plan.choices())}
    chosen = [row for row in rows if row["references.exemplars"] == 3]
    settings = trials[chosen[0]["trial"]].settings
    index = str(labelled.out / "index" / "000-conse-efficientnet-lite0")
    build_references(index, plan.dataset.vocabulary, str(tmp_path / "bank"), settings)
    ways = {
        row["trial"]: Variant(str(tmp_path / "bank"), trials[row["trial"]].settings.segment) for row in chosen
    }
    protocol = choose_protocol("whole", None, settings.segment)
    compare = Comparer(plan.dataset, ways, protocol, settings, "cpu")
    load = sample_loader(compare.models.encoder.transform, compare.models.encoder.stride, protocol, 10**6)
    matrices = {row["trial"]: np.zeros((3, 4), np.int64) for row in chosen}
    for compared in compare(load(pa.table({"uri": plan.images, "number": range(len(plan.images))}))):
        for name, predicted in compared.predicted.items():
            matrices[name] += confusion_matrix(compared.truth, predicted, 3)
    assert len(chosen) == 2
    for row in chosen:
        assert row["miou"] == pytest.approx(scores(matrices[row["trial"]])["miou"], abs=0.01)


def test_the_best_setting_is_accepted_and_says_that_labels_chose_it(labelled: Finished, folder: Path) -> None:
    best = pq.read_table(labelled.out / "trials.parquet").to_pylist()[0]
    file = labelled.out / "best.yaml"
    settings = load_settings("mini", str(file))
    assert settings.references.exemplars == best["references.exemplars"]
    assert settings.segment.refine == best["segment.refine"]
    assert settings.references.image_size == 64
    assert "tuned on labels" in file.read_text()
    assert "tuned on labels" in (labelled.out / "report" / "index.html").read_text()


def test_another_sweep_is_not_mixed_in(
    labelled: Finished, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_of(folder, "other", LABELLED | {"sample": 3})
    with pytest.raises(SystemExit):
        main(["sweep", str(folder / "other.yaml"), "--out", str(labelled.out)])
    assert re.search(r"begun with .*sweep\.sample = \w+, now 3", capsys.readouterr().err)


# --- without labels -----------------------------------------------------------------------------------------


def test_a_search_without_labels_stops_some_early_and_leaves_out_broken_images(
    labelled: Finished, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    plan = plan_of(folder, "free", FREE)
    assert plan.rungs == [3, 6, 10]
    told: list[TrialRecord] = []
    result = run_sweep(plan, str(tmp_path / "out"), told.append)
    manifest, ranked = result.manifest, result.ranked
    assert result.new
    assert manifest is not None
    assert Path(result.report).is_file()
    assert Path(result.best).is_file()
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
    again = run_sweep(plan, str(tmp_path / "out"))
    assert not again.new
    assert again.manifest == manifest
    assert verify(str(tmp_path / "out")).differences == []
    assert ended(tmp_path / "out") == before

    (
        tmp_path / "out" / "manifest.json"
    ).unlink()  # as if killed before its last line: nothing is computed again
    replayed = run_sweep(plan, str(tmp_path / "out"))
    assert replayed.new
    assert replayed.manifest is not None
    assert before.items() <= ended(tmp_path / "out").items()


def test_what_trials_share_is_made_once(labelled: Finished, folder: Path) -> None:
    shared = SharedTasks(plan_workers("cpu"))
    settings = labelled.plan.base
    uris = [str(file) for file in sorted((folder / "corpus").glob("*.jpg"))]

    first = shared.encoded(exemplar_view(settings), uris[:5])
    assert shared.encoded(exemplar_view(settings), uris[:5]) == first
    assert shared.encoded(exemplar_view(settings), uris[3:8])[:2] == first[3:]
    assert shared.encoded_count() == 8
    other = shared.encoded(image_view(settings), uris[:5])
    assert not set(other) & set(first)
    assert ray.get(first[2]).uri == uris[2]
    assert ray.get(first[2]).visual.shape[1:] == (2, 2)
    assert ray.get(other[2]).pixels is not None

    changed = settings.model_copy(update={"segment": settings.segment.model_copy(update={"refine": "crf"})})
    assert shared.encoded(image_view(changed), uris[:5]) == other
