import argparse
import hashlib
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from reco_ray.errors import RecoError
from reco_ray.models import load_dense_encoder, load_language_image_model, weights

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """What HF_HUB_OFFLINE=1 does at import, with an empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def put(directory, spec, suffix=".safetensors"):
    path = directory / (weights.relative_path(spec) + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.arange(3.0)}, path)
    return path


SPECS = [
    "open_clip:ViT-B-16/openai",
    "timm:vit_small_patch14_dinov2.lvd142m",
    "timm:hf-hub:timm/resnet18.a1_in1k",
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_folder_is_searched_by_spec(tmp_path, spec):
    path = put(tmp_path, spec)
    assert weights.local_file(spec, str(tmp_path)) == path


def test_the_environment_stands_in_for_the_argument(tmp_path, monkeypatch):
    path = put(tmp_path, SPECS[0], ".bin")
    monkeypatch.setenv("RECO_WEIGHTS", str(tmp_path))
    assert weights.local_file(SPECS[0]) == path
    other = put(tmp_path / "other", SPECS[0])
    assert weights.local_file(SPECS[0], str(tmp_path / "other")) == other


def test_without_either_weights_come_from_the_hub():
    assert weights.local_file(SPECS[0]) is None


def test_a_file_is_taken_as_it_is(tmp_path):
    path = put(tmp_path, "open_clip:anything/else")
    assert weights.local_file(SPECS[0], str(path)) == path


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecoError, match=r"gone\.pt: no such file"):
        weights.local_file(SPECS[0], str(tmp_path / "gone.pt"))


def test_a_folder_without_the_model_says_where_it_would_be(tmp_path):
    put(tmp_path, SPECS[0])
    with pytest.raises(
        RecoError, match=r"weights pull timm:vit.*timm/vit_small_patch14_dinov2.lvd142m.safetensors"
    ):
        weights.local_file(SPECS[1], str(tmp_path))


def test_a_uri_is_downloaded_once(tmp_path):
    path = put(tmp_path, SPECS[0])
    for uri in (path.as_uri(), tmp_path.as_uri()):
        copy = weights.local_file(SPECS[0], uri)
        assert copy != path
        assert copy.read_bytes() == path.read_bytes()
    path.unlink()
    assert weights.fetch(path.as_uri()).exists()
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """A file in the folder's place: root, too, cannot write there."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECO_CACHE", str(tmp_path / "file"))
    path = put(tmp_path, SPECS[0])
    with pytest.raises(RecoError, match=r"cannot be downloaded to .*/file/weights \(RECO_CACHE\): Not a dir"):
        weights.local_file(SPECS[0], path.as_uri())
    with (
        pytest.raises(
            RecoError, match=r"timm:x have no place here: .*/file/hub: Not a directory: set HF_HOME"
        ),
        weights.from_hub("timm:x"),
    ):
        (tmp_path / "file" / "hub").mkdir()


def test_list_local_finds_what_a_folder_holds(tmp_path):
    paths = {spec: put(tmp_path, spec) for spec in SPECS}
    (tmp_path / "timm" / "notes.txt").write_text("not weights")
    found = weights.list_local(tmp_path)
    assert {local.spec: local.path for local in found} == paths
    assert found[0].size == paths[SPECS[0]].stat().st_size
    assert found[0].sha256 == hashlib.sha256(paths[SPECS[0]].read_bytes()).hexdigest()
    assert weights.list_local(tmp_path / "nowhere") == []


def test_state_dicts_are_unwrapped(tmp_path):
    tensors = {"a.weight": torch.rand(2, 3), "b": torch.arange(4)}
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"model": tensors, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, tmp_path / "deit.pth")
    torch.save({"state_dict": wrapped, "optimizer": {}}, tmp_path / "clip.pt")
    torch.save(tensors, tmp_path / "bare.bin")
    for name in ("deit.pth", "clip.pt", "bare.bin"):
        stored = weights.read_state_dict(tmp_path / name)
        assert stored.keys() == tensors.keys()
        assert all(torch.equal(stored[key], tensors[key]) for key in tensors)


class Payload:
    """Anything but a tensor; unpickling it would run code of the file's choice."""


@pytest.mark.parametrize("load", [load_language_image_model, load_dense_encoder])
def test_a_pickle_of_objects_is_not_opened(tmp_path, load):
    torch.save({"model": Payload()}, tmp_path / "evil.pt")
    spec = "open_clip:ViT-S-32/mine" if load is load_language_image_model else "timm:test_vit"
    with pytest.raises(RecoError, match=r"evil\.pt: holds more than tensors, not opened"):
        load(spec, weights=str(tmp_path / "evil.pt"))


def test_a_truncated_file_is_one_line(tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        RecoError, match=r"half\.safetensors: does not hold the weights of timm:test_vit"
    ) as caught:
        load_dense_encoder("timm:test_vit", weights=str(path))
    assert "\n" not in str(caught.value)


def test_written_weights_are_read_back_even_if_tied(tmp_path):
    shared = torch.rand(4)
    path = weights.write_state_dict({"a": shared, "b": shared, "c": torch.rand(3, 2).T}, tmp_path / "v1.0")
    assert path.name == "v1.0.safetensors"
    assert torch.equal(weights.read_state_dict(path)["b"], shared)


@pytest.mark.parametrize(
    ("load", "spec"),
    [
        (load_language_image_model, "open_clip:ViT-B-16/openai"),
        (load_language_image_model, "open_clip:RN50/yfcc15m"),
        (load_language_image_model, "open_clip:ViT-B-16-SigLIP/webli"),
        (load_dense_encoder, "timm:vit_small_patch14_dinov2.lvd142m"),
        (load_dense_encoder, "timm:resnet18/pretrained"),
    ],
)
def test_without_a_network_one_line_says_what_to_do(no_network, load, spec):
    with pytest.raises(RecoError) as caught:
        load(spec)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        spec.removesuffix("/pretrained"),
        "reco-ray weights pull",
        "--weights DIR",
        "RECO_WEIGHTS",
        "mini",
    ):
        assert part in message


def test_a_release_that_cannot_be_fetched_is_the_same_line(no_network, monkeypatch, tmp_path):
    from reco_ray.models.dense_encoders.timm import RELEASED

    name = "deit_small_distilled_patch16_224.sin"
    monkeypatch.setitem(RELEASED, name, (tmp_path / "gone.pth").as_uri())
    with pytest.raises(RecoError, match=f"weights of timm:{name} are not here"):
        load_dense_encoder(f"timm:{name}")


def test_an_unreachable_hub_is_noticed_at_once(monkeypatch, tmp_path):
    """A closed port refuses at once; without the check the hub's client would retry for most of a minute."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    before = constants.HF_HUB_OFFLINE
    with weights.from_hub("timm:x"):
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is before


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("conse:efficientnet_lite0", "nothing to pull"),
        ("efficientnet_lite0", "nothing to pull"),
        ("efficientnet_lite2", "nothing to pull"),
        ("open_clip:RN50/random", "made, not pulled"),
        ("open_clip:RN5/openai", "did you mean RN50"),
        ("timm:resnet18.nope", "no weights 'nope'"),
        ("timm:resnet1888", "did you mean resnet18"),
    ],
)
def test_what_cannot_be_pulled_is_said(tmp_path, spec, reason):
    with pytest.raises(RecoError, match=reason):
        weights.pull(spec, tmp_path)
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()]


def test_seeding_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with weights.seeded(1):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with weights.seeded(1):
        assert torch.equal(torch.rand(3), first)
