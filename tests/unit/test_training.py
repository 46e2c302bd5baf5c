"""What a segmenter is trained on, and the network: a function of seed and step alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from images import encoded, photograph
from PIL import Image
from training_data import write_segmenter

from reco_ray.config import load_settings
from reco_ray.errors import RecoError, UsageError
from reco_ray.files import storage
from reco_ray.segmentation.calibration import calibration, moments
from reco_ray.training import Segmenter, checkpoint
from reco_ray.training.label_worker import soft_labels
from reco_ray.training.loop import permanent_failure, soft_cross_entropy
from reco_ray.training.measure import fold_calibration
from reco_ray.training.network import build_network
from reco_ray.training.pseudo_labels import FRAMES_SCHEMA, IGNORE, LABELS_SCHEMA, encode
from reco_ray.training.samples import (
    SOFT_PIXELS,
    Crops,
    Frames,
    augmentation,
    positions,
    sampling_plan,
    split,
)
from reco_ray.training.trainability import require_network
from reco_ray.training.vocabularies import require_distinct
from reco_ray.vocabulary import parse_concepts

SIZES = [5, 3, 7]


def test_every_row_is_either_trained_on_or_held_out() -> None:
    trained, held_out = split(SIZES, 0.2, seed=0)
    rows = {tuple(row) for row in np.concatenate([trained, held_out]).tolist()}
    assert len(trained) + len(held_out) == len(rows) == sum(SIZES)
    assert len(held_out) == 3


def test_one_row_is_always_held_out() -> None:
    assert len(split([2], 0.01, seed=0)[1]) == 1


def test_an_epoch_takes_every_row_once_and_a_longer_plan_begins_with_a_shorter_one() -> None:
    rows, _ = split(SIZES, 0.2, seed=0)
    plan = sampling_plan(rows, 3 * len(rows), seed=7)
    for epoch in range(3):
        part = plan[epoch * len(rows) : (epoch + 1) * len(rows), :2]
        assert sorted(part.tolist()) == sorted(rows.tolist())
    np.testing.assert_array_equal(sampling_plan(rows, len(rows), seed=7), plan[: len(rows)])
    assert sampling_plan(rows, len(rows), seed=8).tolist() != plan[: len(rows)].tolist()


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_together_take_the_rows_that_one_would_take(workers: int) -> None:
    batch, steps, start = 8, 5, 2
    alone = positions(batch * steps, start * batch, 0, 1)
    shares = [positions(batch * steps, start * batch, rank, workers) for rank in range(workers)]
    mine = batch // workers
    for step in range(steps - start):
        together = np.concatenate([share[step * mine : (step + 1) * mine] for share in shares])
        assert sorted(together.tolist()) == alone[step * batch : (step + 1) * batch].tolist()


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    module, optimizer = _trained(seed=1)
    state = checkpoint.TrainingState(
        3, 0.5, checkpoint.detached(module.state_dict()), [{"step": 3, "loss": 1.0}]
    )
    checkpoint.save(tmp_path, state, module, optimizer, "smp:FPN/a")
    again, its_optimizer = _trained(seed=2)
    found = checkpoint.load(tmp_path, again, its_optimizer, "smp:FPN/a")
    assert (found.step, found.best, found.curve) == (3, 0.5, state.curve)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    for number, kept in optimizer.state_dict()["state"].items():
        for key, tensor in kept.items():
            torch.testing.assert_close(
                its_optimizer.state_dict()["state"][number][key], tensor, rtol=0, atol=0
            )
    assert not list(tmp_path.glob("*.pt"))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    module, optimizer = _trained(seed=1)
    checkpoint.save(tmp_path, checkpoint.TrainingState(), module, optimizer, "smp:FPN/a")
    with pytest.raises(RecoError, match=r"holds a smp:FPN/a, not a smp:FPN/b: choose another --out"):
        checkpoint.load(tmp_path, module, optimizer, "smp:FPN/b")
    with pytest.raises(RecoError, match="another number of labels"):
        checkpoint.load(tmp_path, *_trained(seed=1, labels=5), "smp:FPN/a")


def _trained(seed: int, labels: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, labels, 1), torch.nn.BatchNorm2d(labels))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory."),
    ],
)
def test_running_out_of_memory_says_what_to_lower(error: Exception) -> None:
    assert "lower train.batch_size or train.crop" in str(permanent_failure(error))


def test_what_may_end_otherwise_is_tried_again() -> None:
    assert permanent_failure(RuntimeError("connection reset by peer")) is None


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(3).put_(torch.zeros(3, dtype=torch.long), torch.ones(3))  # on any device
    finally:
        torch.use_deterministic_algorithms(False)
    assert "the network uses put_, which has no deterministic form" in str(permanent_failure(caught.value))


def test_augmented_crops_have_one_size_and_ignore_what_was_padded() -> None:
    augment = augmentation(64, 96, (0.5, 0.5))
    from torchvision import tv_tensors

    image = tv_tensors.Image(torch.zeros(3, 64, 80, dtype=torch.uint8))
    places = tv_tensors.Mask(torch.arange(64 * 80).view(64, 80))
    crop, mask = augment(image, places)
    assert crop.shape == (3, 96, 96)
    assert mask.min() == -1
    assert mask.max() < 64 * 80


def test_soft_labels_follow_the_crop(tmp_path: Path) -> None:
    """A ramp of probabilities over the frame is the same ramp in the crop, and nothing where it is padded."""
    width, height = 80, 64
    ramp = np.tile(np.linspace(0, 255, 20).round().astype(np.uint8), (16, 1))
    soft = encode(np.concatenate([255 - ramp, ramp]))
    label = encode(np.tile((np.arange(width) >= width // 2).astype(np.uint8), (height, 1)))
    frame = encoded(Image.fromarray(np.full((height, width, 3), 90, np.uint8)), quality=95)
    frames, labels = str(tmp_path / "frames"), str(tmp_path / "labels")
    for uri, row, schema in (
        (frames, {"uri": "a", "width": width, "height": height, "frame": frame}, FRAMES_SCHEMA),
        (labels, {"uri": "a", "label": label, "score": label, "soft": soft}, LABELS_SCHEMA),
    ):
        table = pa.Table.from_pylist([row], schema)
        storage.write_table(storage.join(uri, uri.rpartition("/")[2], "0.parquet"), table)
    plan = np.array([(0, 0, seed) for seed in range(6)])
    crops = Crops(Frames.open(frames, labels, soft=2), plan, augmentation(64, 72, (0.75, 1.25)))
    batch = crops({"id": np.arange(6)})
    assert batch["soft"].shape == (6, 2, 18, 18)
    at = batch["label"][:, SOFT_PIXELS, SOFT_PIXELS]
    ignored = at == IGNORE
    assert ignored.any()
    assert not batch["soft"].transpose(0, 2, 3, 1)[ignored].any()
    assert abs(batch["soft"].astype(int).sum(1)[~ignored] - 255).max() <= 1
    # The right label is the likelier one right of the middle, whichever way the crop was mirrored.
    right = batch["soft"][:, 1] > 127
    assert (right == (at == 1))[~ignored].mean() > 0.93


def test_soft_labels_add_up_what_has_the_same_label_and_keep_edges() -> None:
    left = torch.zeros(64, 80)
    left[:, :40] = 1.0
    maps = torch.stack([left, 0.75 * (1 - left), 0.25 * (1 - left)])  # the last two are background
    soft = soft_labels(maps, torch.tensor([2, 0, 0]), 4)
    assert soft.shape == (4, 8, 10)
    torch.testing.assert_close(soft.sum(0), torch.ones(8, 10))
    assert torch.equal(soft[2, :, :5], torch.ones(8, 5))
    assert torch.equal(soft[0, :, 5:], torch.ones(8, 5))
    assert not soft[[1, 3]].any()
    assert soft_labels(torch.ones(1, 3, 90), torch.tensor([0]), 1).shape == (1, 1, 11)


def test_soft_labels_that_are_certain_are_labels() -> None:
    logits = torch.randn(2, 3, 8, 8)
    labels = torch.randint(3, (2, 8, 8))
    soft = F.one_hot(labels, 3).permute(0, 3, 1, 2).to(torch.uint8) * 255
    soft[:, :, :4] = 0
    expected = F.cross_entropy(logits[:, :, 4:], labels[:, 4:])
    torch.testing.assert_close(soft_cross_entropy(logits, soft), expected)
    assert soft_cross_entropy(logits, torch.zeros_like(soft)) == 0


def test_soft_labels_are_sharpened() -> None:
    logits = torch.randn(1, 2, 1, 1)
    soft = torch.tensor([204, 51], dtype=torch.uint8).view(1, 2, 1, 1)  # 0.8 and 0.2
    sharp = torch.tensor([0.64 / 0.68, 0.04 / 0.68])
    expected = -(sharp * logits.flatten().log_softmax(0)).sum()
    torch.testing.assert_close(soft_cross_entropy(logits, soft), expected)


@pytest.mark.parametrize("preset", ["mini", "paper"])
def test_the_presets_networks_give_logits_of_the_images_size(preset: str) -> None:
    train = load_settings(preset).train
    network = build_network(train.segmenter, 5, initial="random")
    with torch.inference_mode():
        assert network.module.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 64, 96)


def test_a_frozen_encoder_learns_nothing() -> None:
    network = build_network("frozen:timm:vit_tiny_patch16_224/random", 3, initial="random")
    module = network.module.train()
    module(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(
        p.grad is not None
        for p in [*module.local.parameters(), *module.whole.parameters(), *module.classifier.parameters()]
    )


@pytest.mark.parametrize(
    "spec", [load_settings("mini").train.segmenter, "frozen:timm:vit_tiny_patch16_224/random"]
)
def test_folded_weights_give_standardised_logits(spec: str) -> None:
    network = build_network(spec, 3, initial="random")
    module, pixels = network.module.eval(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits = module(pixels)
        calibrated = calibration(moments([logits]))
        module.load_state_dict(fold_calibration(network, calibrated))
        torch.testing.assert_close(module(pixels), calibrated.standardise(0, logits), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", ["unet", "smp:Nothing/tu-resnet18", "smp:FPN/no-such-encoder"])
def test_an_unknown_network_is_one_line(spec: str) -> None:
    with pytest.raises(RecoError, match="segmenter"):
        build_network(spec, 2, initial="random")


DEEPLAB = "smp:DeepLabV3Plus/tu-resnet18"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"segmenter={DEEPLAB}", "batch_size=2", "accumulate=2"], "leaves 1 crop per pass.*batch_size=4"),
        ([f"segmenter={DEEPLAB}", "batch_size=4", "workers=4"], "leaves 1 crop per pass.*batch_size=8"),
        (
            [
                "segmenter=smp:FPN/tu-resnet18",
                "crop=32",
                "batch_size=2",
                "accumulate=2",
                "encoder_learning_rate=1",
            ],
            "leaves 1 crop per pass",
        ),
        (["segmenter=smp:FPN/tu-resnet18", "crop=70"], "train.crop=70 is not a multiple of 32.*64 or 96"),
        (["segmenter=smp:FPN/tu-resnet18", "crop=33"], "train.crop=32 or 64"),
        (["segmenter=frozen:timm:vit_tiny_patch16_224/random", "crop=70"], "not a multiple of 16.*64 or 80"),
    ],
)
def test_crops_that_a_network_does_not_take_are_found_before_any_work(
    overrides: list[str], said: str
) -> None:
    chosen = ["train.initial=random", "train.crop=64", *(f"train.{each}" for each in overrides)]
    with pytest.raises(RecoError, match=said) as error:
        require_network(load_settings("mini", overrides=chosen))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["batch_size=2"],  # DeepLab with two crops a pass
        ["segmenter=smp:FPN/tu-resnet18", "batch_size=2", "accumulate=2"],  # no norm over a whole crop
        ["segmenter=smp:FPN/tu-resnet18", "batch_size=64", "crop=96"],
    ],
)
def test_crops_that_a_network_takes_pass(overrides: list[str]) -> None:
    chosen = [f"segmenter={DEEPLAB}", "initial=random", "crop=64", *overrides]
    require_network(load_settings("mini", overrides=[f"train.{each}" for each in chosen]))


def test_a_plan_has_whole_batches_also_of_fewer_images() -> None:
    rows, _ = split([3], 0.2, seed=0)
    plan = sampling_plan(rows, 4 * 8, seed=0)
    assert len(plan) == 32
    assert sorted(len(positions(len(plan), 8, rank, 2)) for rank in range(2)) == [12, 12]


def test_the_same_vocabulary_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="are the same"):
        require_distinct({"a": parse_concepts("cat,dog"), "b": parse_concepts("cat, dog")})


def test_a_segmenter_opens_from_its_artifact_and_predicts(tmp_path: Path) -> None:
    segmenter = Segmenter.from_artifact(write_segmenter(tmp_path / "s", 3))
    image = photograph(0)
    labels, scores = segmenter.predict(image)
    assert labels.shape == scores.shape == (image.height, image.width)
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert (scores >= 1 / 3 - 1e-3).all()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecoError, match="its weights are not those of"):
        Segmenter.from_artifact(write_segmenter(tmp_path / "s", 3, stored=4))
