"""Drivers know models without loading them, and workers notice when they load others."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reco_ray.config import ModelSettings, load_settings
from reco_ray.errors import RecoError
from reco_ray.files.caches import cache_directory
from reco_ray.models import description as described
from reco_ray.models import load_dense_encoder, load_language_image_model
from reco_ray.models.dense import DenseModels
from reco_ray.models.weights import write_state_dict

RANDOM = ModelSettings(
    retrieval="open_clip:ViT-S-32-alt/random", encoder="timm:vit_tiny_patch16_224/random@layer=2"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty but for the text embeddings, which take much longer to compute than to read."""
    texts = cache_directory() / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "texts").symlink_to(texts.resolve())
    monkeypatch.setenv("RECO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def never(*_: object, **__: object) -> None:
    raise AssertionError("a model is loaded")


@pytest.mark.parametrize("models", [load_settings("mini").models, RANDOM], ids=["packaged", "random"])
def test_a_description_is_that_of_the_models_and_the_next_run_loads_none(
    models: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrieval = load_language_image_model(models.retrieval)
    dense = DenseModels.load(models)
    first = described.describe_retrieval_model(models, 0), described.describe_dense_models(models, 0)
    assert first[0] == described.ModelDescription(
        retrieval.fingerprint, retrieval.transform, retrieval.stride, retrieval.embedding_dim
    )
    assert first[1] == described.ModelDescription(
        dense.fingerprint, dense.encoder.transform, dense.encoder.stride
    )
    monkeypatch.setattr(described, "load_language_image_model", never)
    monkeypatch.setattr(described.DenseModels, "load", never)
    assert (
        described.describe_retrieval_model(models, 0),
        described.describe_dense_models(models, 0),
    ) == first


def test_what_changes_the_models_is_not_taken_from_the_cache() -> None:
    found = {described.describe_dense_models(RANDOM, seed).fingerprint for seed in (0, 1)}
    found.add(
        described.describe_dense_models(RANDOM.model_copy(update={"affinity": "proxyclip"}), 0).fingerprint
    )
    assert len(found) == 3


def test_a_file_of_weights_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    name = "timm:vit_tiny_patch16_224"
    folder = tmp_path / "weights"
    models = RANDOM.model_copy(update={"encoder": name, "weights": str(folder)})
    seen = []
    for seed in (0, 1):
        encoder = load_dense_encoder(f"{name}/random", seed=seed)
        net = encoder.module.net  # without its classifier, which the file needs
        state = {**net.state_dict(), "head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
        path = write_state_dict(state, folder / name.replace(":", "/"))
        os.utime(path, ns=(seed, seed))
        seen.append(described.describe_dense_models(models, 0).fingerprint)
    assert seen[0] != seen[1]


def test_a_damaged_or_unwritable_cache_costs_only_time(cache: Path) -> None:
    first = described.describe_dense_models(RANDOM, 0)
    (file,) = cache.iterdir()
    file.write_text("{")
    assert described.describe_dense_models(RANDOM, 0) == first
    file.unlink()
    cache.rmdir()
    cache.write_text("no folder")
    assert described.describe_dense_models(RANDOM, 0) == first


def test_a_worker_with_another_model_is_one_line() -> None:
    found = described.describe_dense_models(RANDOM, 0)
    found.require(found.fingerprint)
    with pytest.raises(RecoError, match="this node has model other#1, but the run was started with"):
        replace(found).require("other#1")
