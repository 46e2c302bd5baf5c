"""Components of other packages: found by the metadata of what is installed, in this process and in Ray's workers."""

import subprocess
import sys
from pathlib import Path

import pytest

from reco_ray.errors import RecoError
from reco_ray.registry import DENSE_ENCODERS, LANGUAGE_IMAGE_MODELS, REFINEMENTS, SEGMENTER_NETWORKS, Registry

MODULE = """
import torch
from reco_ray.models.image import ImageTransform

TITLE = "Blur"

class Grey:
    module = torch.nn.Identity()
    transform = ImageTransform(32, (0.5,) * 3, (0.5,) * 3)
    channels, stride, fingerprint = 1, 8, "grey#1"

    def encode(self, images):
        return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8)

def load(name, *, weights, device, seed, precision):
    return Grey()

def refine(scores, image):
    return torch.nn.functional.avg_pool2d(scores[None], 3, 1, 1, count_include_pad=False)[0]

def build(name, classes, *, initial, weights_folder):
    from reco_ray.training.network import Network
    layer = torch.nn.Conv2d(3, classes, 1)
    return Network(layer, layer, layer, Grey.transform, 8)
"""
GROUPS = ("reco_ray.dense_encoders", "reco_ray.refinements", "reco_ray.segmenter_networks")
USE = """
import torch
from reco_ray.config import load_settings
from reco_ray.models import DenseEncoder, load_dense_encoder
from reco_ray.segmentation.refine import refine
from reco_ray.training.network import build_network

encoder = load_dense_encoder("grey:any")
assert isinstance(encoder, DenseEncoder)
assert encoder.encode(torch.rand(2, 3, 32, 64)).shape == (2, 1, 4, 8)
assert load_settings("mini", overrides=["segment.refine=grey"]).segment.refine == "grey"
scores = torch.rand(3, 16, 16)
assert refine(scores, torch.zeros(3, 16, 16, dtype=torch.uint8), "grey").shape == scores.shape
assert build_network("grey:any", 5, initial="random").module(torch.rand(1, 3, 8, 8)).shape == (1, 5, 8, 8)
print("used")
"""


def install(folder: Path, module: str) -> None:
    """What pip leaves behind of a package with one component of each kind."""
    (folder / "other_package.py").write_text(module)
    metadata = folder / "other_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    lines = [f"[{group}]\ngrey = other_package\n" for group in GROUPS]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


def test_a_package_adds_an_encoder_a_refinement_and_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, timeout=120)
    assert done.stdout == "used\n", done.stderr


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    refinements = Registry("refinement", "reco_ray.refinements", "reco_ray.segmentation.refine")
    assert refinements.names == ["none", "crf", "pamr", "grey"]
    with pytest.raises(
        RecoError, match=r"'grey' of package other-package cannot be imported: .*a_module_that"
    ):
        refinements.get("grey")


def test_every_component_of_reco_ray_has_what_its_kind_needs() -> None:
    for registry, function in (
        (LANGUAGE_IMAGE_MODELS, "load"),
        (DENSE_ENCODERS, "load"),
        (REFINEMENTS, "refine"),
        (SEGMENTER_NETWORKS, "build"),
    ):
        assert registry.names
        assert all(callable(getattr(registry.get(name), function)) for name in registry.names)
    assert all(REFINEMENTS.get(name).TITLE for name in REFINEMENTS.names)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        RecoError, match=r"unknown refinement 'pamer': known are none, crf, pamr; did you mean pamr\?"
    ):
        REFINEMENTS.get("pamer")


def test_the_settings_know_the_names_without_importing_torch() -> None:
    code = "import sys, reco_ray.config as c; c.load_settings('mini'); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
