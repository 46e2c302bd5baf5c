"""Ray Train runs on made-up pseudo-labels: several workers, memory, NaN, MLflow, networks, one failure among many."""

import io
import os
import resource
import threading
import time
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pytest
from processes import descendants, title
from training_data import write_pseudo_labels

from reco_ray.cli import main
from reco_ray.config import Settings, load_settings
from reco_ray.errors import NoRoomError, RecoError
from reco_ray.files import storage
from reco_ray.training.feed import feed
from reco_ray.training.samples import Frames, sampling_plan, split
from reco_ray.training.stage import Outcome, train_segmenters
from reco_ray.training.vocabularies import train_vocabularies
from reco_ray.vocabulary import parse_concepts

SMALL = [
    "train.image_size=64",
    "train.crop=64",
    "train.batch_size=4",
    "train.checkpoint_every=2",
    "train.steps=2",
]
# The published network on a smaller encoder; and a head on the frozen encoder of `modern`'s kind.
PAPER = ["train.segmenter=smp:DeepLabV3Plus/tu-resnet18@encoder_output_stride=16", "train.initial=random"]
FROZEN = ["train.segmenter=frozen:timm:vit_tiny_patch16_224/random", "train.initial=random"]

pytestmark = [pytest.mark.cpus(2), pytest.mark.timeout(600)]  # a training may have two workers


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pseudo_labels(tmp_path_factory.mktemp("labels"))


def settings(*overrides: str, preset: str = "mini") -> Settings:
    return load_settings(preset, overrides=[*SMALL, *overrides])


def train(labels: str, out: Path, *overrides: str, preset: str = "mini") -> Outcome:
    (outcome,) = train_segmenters({"a": labels}, {"a": str(out)}, settings(*overrides, preset=preset))
    return outcome


def test_workers_are_fed_what_one_would_be(labels: str) -> None:
    options = settings("train.workers=2", "train.accumulate=2", "train.steps=3").train
    frames = Frames.open(labels.removesuffix("labels") + "frames", labels)
    plan = sampling_plan(split(frames.sizes, 0.1, 0)[0], options.steps * options.batch_size, 0)
    alone = list(feed(frames, plan, settings("train.steps=3").train, start=1, rank=0, world=1, feeders=1))
    shares = [list(feed(frames, plan, options, start=1, rank=rank, world=2, feeders=1)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [4, 4]  # two steps of two batches
    for step, whole in enumerate(alone):
        parts = [batch for share in shares for batch in share[2 * step : 2 * step + 2]]
        together = np.concatenate([part["id"] for part in parts])
        assert sorted(together.tolist()) == whole["id"].tolist() == list(range(4 * step + 4, 4 * step + 8))
        images = np.concatenate([part["image"] for part in parts])[np.argsort(together)]
        np.testing.assert_array_equal(images, whole["image"])


class Trained(NamedTuple):
    """A run over four sets of labels, of which one can be trained on. status: of the command."""

    folder: Path
    status: int
    said: str
    tracking: str


BAD = {
    "empty": "no pixel is labelled 'unicorn'",
    "ignored": "every pseudo-label is ignored",
    "single": "one image is not enough",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """By two workers that accumulate gradients; MLflow's folder is named to the driver only."""
    folder = tmp_path_factory.mktemp("trained")
    sets = [
        write_pseudo_labels(folder / "empty", 3, concepts="shadow,light,unicorn"),
        write_pseudo_labels(folder / "ignored", 3, ignored=True),
        write_pseudo_labels(folder / "single", 1),
        write_pseudo_labels(folder / "good", 8),
    ]
    words = [part for uri in sets for part in ("--labels", uri)]
    chosen = [*SMALL, "train.workers=2", "train.accumulate=2", "train.steps=4"]
    tracking = (folder / "mlflow").as_uri()
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        with pytest.raises(SystemExit) as ended:
            main(["train", *words, "--out", str(folder / "out"), *(f"--set={each}" for each in chosen)])
    return Trained(folder, ended.value.code, said.getvalue(), tracking)


def test_sets_that_cannot_be_trained_on_stop_no_other(trained: Trained) -> None:
    assert trained.status == 1
    for line in BAD.values():
        assert line in trained.said
    assert "error: 3 of 4 vocabularies failed" in trained.said
    assert (trained.folder / "out" / "good" / "segmenter" / "weights.safetensors").exists()
    assert not any((trained.folder / "out" / name).exists() for name in BAD)


def test_two_workers_that_accumulate_train_one_segmenter_and_tell_mlflow(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = storage.read_table(str(trained.folder / "out/good/segmenter/curve.parquet")).to_pylist()
    assert [entry["step"] for entry in curve] == [2, 4]
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(trained.tracking)
    (run,) = client.search_runs([client.get_experiment_by_name("reco-ray").experiment_id])
    assert run.info.run_name == "good"
    assert run.info.status == "FINISHED"
    for key in ("loss", "agreement"):
        told = client.get_metric_history(run.info.run_id, key)
        assert [(metric.step, metric.value) for metric in told] == [(e["step"], e[key]) for e in curve]


def test_more_workers_than_cores_is_an_error_and_no_wait(labels: str, tmp_path: Path) -> None:
    with pytest.raises(NoRoomError, match=r"train\.workers=4: the cluster has only 2 CPUs"):
        train(labels, tmp_path / "out", "train.workers=4")


def test_a_network_that_needs_more_crops_is_found_before_anything_is_built(tmp_path: Path) -> None:
    words = {"a": parse_concepts("shadow, light")}
    chosen = settings(*PAPER, "train.batch_size=2", "train.accumulate=2")
    with pytest.raises(RecoError, match="leaves 1 crop per pass"):
        list(train_vocabularies(words, "no-index", "no-images", str(tmp_path / "out"), chosen))
    many = settings("train.workers=4")
    with pytest.raises(RecoError, match=r"train\.workers=4"):
        list(train_vocabularies(words, "no-index", "no-images", str(tmp_path / "out"), many))
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_names_the_batch(labels: str, tmp_path: Path) -> None:
    outcome = train(labels, tmp_path / "out", "train.learning_rate=1e25", "train.steps=8")
    assert outcome.manifest is None
    assert "a: the loss is " in str(outcome.error)
    assert " crops " in str(outcome.error)
    assert ".jpg" in str(outcome.error)
    assert "lower train.learning_rate" in str(outcome.error)


@pytest.mark.chaos  # for the minute they take, as the next that has it
@pytest.mark.parametrize(("preset", "network"), [("paper", PAPER), ("modern", FROZEN)])
def test_the_presets_recipes_train(preset: str, network: list[str], labels: str, tmp_path: Path) -> None:
    outcome = train(labels, tmp_path / "out", *network, preset=preset)
    assert outcome.error is None
    assert outcome.manifest is not None
    assert outcome.manifest.counts["steps"] == 2


@pytest.mark.chaos
def test_running_out_of_memory_says_what_to_lower(labels: str, tmp_path: Path) -> None:
    """The worker may take 3 GB more than it has when torch is loaded; its first step needs some 12."""
    limited: list[int] = []

    def limit() -> None:
        deadline = time.monotonic() + 200
        while not limited and time.monotonic() < deadline:
            time.sleep(0.02)
            for pid in descendants(os.getpid()):
                with suppress(OSError):
                    if (
                        "RayTrainWorker" in title(pid)
                        and "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()
                    ):
                        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
                        most = pages * os.sysconf("SC_PAGE_SIZE") + 3 * 2**30
                        resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
                        limited.append(pid)

    limiter = threading.Thread(target=limit)
    limiter.start()
    outcome = train(
        labels, tmp_path / "out", "train.batch_size=256", "train.crop=256", "models.precision=fp32"
    )
    limiter.join()
    assert limited
    assert isinstance(outcome.error, NoRoomError)
    assert "a: out of memory in a step: lower train.batch_size or train.crop" in str(outcome.error)
