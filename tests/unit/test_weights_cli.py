"""`reco-ray weights` and `--weights`, with a hub cache that holds one real, tiny model, and no network."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import save_file

from reco_ray.cli import main
from reco_ray.errors import RecoError
from reco_ray.models import load_dense_encoder
from reco_ray.models.dense_encoders.timm import RELEASED
from reco_ray.models.weights import fetch, is_here, needed, prefetch

TINY = "timm:test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache and an empty cache of ours; downloads are forbidden, as HF_HUB_OFFLINE=1 does at import."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("RECO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECO_WEIGHTS", raising=False)
    return tmp_path / "hub"


@pytest.fixture
def downloaded(hub_cache):
    """The tiny model, as the hub's client leaves it in its cache."""
    import timm
    import torch

    torch.manual_seed(0)
    folder = hub_cache / "models--timm--test_vit.r160_in1k"
    snapshot = folder / "snapshots" / "0000000"
    snapshot.mkdir(parents=True)
    save_file(timm.create_model("test_vit").state_dict(), snapshot / "model.safetensors")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)


def run(capsys, *words) -> tuple[int, str, str]:
    status = 0
    try:
        main([str(word) for word in words])
    except SystemExit as exit_:
        status = exit_.code
    output = capsys.readouterr()
    return status, output.out, output.err


def test_pull_fills_a_folder_that_then_stands_in_for_the_hub(downloaded, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "weights"
    assert not is_here(TINY, str(folder))
    status, out, _ = run(capsys, "weights", "pull", f"{TINY}@layer=0", "--weights", folder)
    file = folder / "timm" / "test_vit.r160_in1k.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert status == 0
    assert out.split() == [TINY, *f"{file.stat().st_size / 1e6:,.0f} MB sha256".split(), digest, str(file)]
    assert run(capsys, "weights", "list", "--weights", folder) == (0, out, "")
    monkeypatch.setenv("RECO_WEIGHTS", str(folder))
    assert run(capsys, "weights", "list") == (0, out, "")

    by_folder = load_dense_encoder(TINY)
    monkeypatch.delenv("RECO_WEIGHTS")
    assert by_folder.fingerprint == load_dense_encoder(TINY).fingerprint, (
        "another checksum for the same weights"
    )
    assert is_here(TINY, str(folder))


def test_what_the_hub_cache_holds_is_here(downloaded):
    assert is_here(TINY)
    prefetch([TINY, "open_clip:RN50/random", "conse:efficientnet_lite0"])
    assert not is_here("timm:test_vit2.r160_in1k")
    assert not is_here("open_clip:ViT-B-16/openai@clearclip")
    assert not is_here("timm:deit_small_distilled_patch16_224.sin")


def test_looking_for_weights_forbids_downloads_only_meanwhile(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not is_here("open_clip:ViT-B-16/openai")
    assert constants.HF_HUB_OFFLINE is False


def test_a_release_is_not_downloaded_when_that_is_forbidden(tmp_path, monkeypatch):
    name = "deit_small_distilled_patch16_224.sin"
    source = tmp_path / "deit.pth"
    source.write_bytes(b"any bytes: nothing is opened here")
    monkeypatch.setitem(RELEASED, name, source.as_uri())
    with pytest.raises(RecoError, match=f"weights of timm:{name} are not here"):
        prefetch([f"timm:{name}@layer=-1"])
    fetch(source.as_uri())
    assert is_here(f"timm:{name}")


def test_only_models_from_a_hub_are_needed():
    specs = ["conse:efficientnet_lite0", "efficientnet_lite2", "open_clip:RN50/random@value", TINY]
    assert needed(specs) == [TINY]


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["pull", "--preset", "mini", "--weights", "w"], 1, "preset mini: nothing to pull"),
        (["pull", "--preset", "paper", "--weights", "w"], 1, "open_clip:ViT-L-14-336/openai are not here"),
        (["pull", "--weights", "w"], 2, "name either one model or --preset NAME"),
        (["pull", TINY, "--preset", "mini", "--weights", "w"], 2, "name either one model or --preset NAME"),
        (["pull", TINY], 2, "--weights"),
        (["list", "--weights", "w"], 1, "w: no weights in it"),
    ],
)
def test_what_goes_wrong_is_one_line(words, status, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "weights", *words)
    assert (code, out) == (status, "")
    assert reason in err
    assert err.count("\n") == 1
    assert not Path("w").exists()


@pytest.mark.parametrize("place", ["option", "environment"])
def test_a_folder_without_the_weights_is_named(place, tmp_path, monkeypatch, capsys):
    options = []
    if place == "option":
        options = ["--weights", str(tmp_path / "folder")]
    else:
        monkeypatch.setenv("RECO_WEIGHTS", str(tmp_path / "folder"))
    places = ["--corpus", tmp_path, "--images", tmp_path, "--out", tmp_path / "out", "--concepts", "dog"]
    code, _, err = run(capsys, "run", "--preset", "modern", *places, *options)
    assert code == 1
    assert f"{tmp_path}/folder has no weights of open_clip:ViT-B-16/openai" in err
