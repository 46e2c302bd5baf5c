"""Components of other packages: found by the metadata of what is installed, in this process and in Ray's workers."""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mask_maps import write_masks
from other_package import ENDPOINT, install

from reco_ray.errors import RecoError
from reco_ray.mask_export.mask_format import MaskFormat
from reco_ray.registry import (
    CONTAINERS,
    DENSE_ENCODERS,
    LANGUAGE_IMAGE_MODELS,
    MASK_FORMATS,
    REFINEMENTS,
    SEGMENTER_NETWORKS,
    Registry,
)
from reco_ray.serving import routes
from reco_ray.serving.app import build
from reco_ray.serving.keys import new_key
from reco_ray.serving.options import ServeOptions

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


ZIP_READER = """
import re
import zipfile

SUFFIXES = (".zip",)
KIND = "archive"
_ADDRESS = re.compile("(.*?[.]zip)#(.+)", re.I)

def members(uri, options):
    with zipfile.ZipFile(uri) as file:
        for name in file.namelist():
            yield f"{uri}#{name}", file.read(name)

def owns(address):
    return _ADDRESS.fullmatch(address) is not None

def read(address, limit):
    uri, name = _ADDRESS.fullmatch(address).groups()
    with zipfile.ZipFile(uri) as file:
        return file.read(name)
"""
# The folder holds a.zip with two images, b.tar with one, a clip, and a table that says where images of a.zip come from.
USE_ZIPS = """
import sys
from reco_ray.corpus.containers import container_pattern, containers, is_container
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.read import list_images, read_image_bytes
from reco_ray.segmentation.names import file_name

folder = sys.argv[1]
assert [each.KIND for each in containers()] == ["archive", "archive", "table", "video"]
assert is_container("A.ZIP") and "zip" in container_pattern()
files = list_files(folder)
assert sorted(name[-5:] for name in files.table["uri"].to_pylist()) == ["a.zip", "b.tar"]
assert files.left_out == {"videos": 1, "tables of addresses whose images lie beside them": 1}, files.left_out
images = list_images(f"{folder}/a.zip").table["uri"].to_pylist()
assert images == [f"{folder}/a.zip#street/x.png", f"{folder}/a.zip#b.tar#y@1+2"], images
assert [read_image_bytes(each) for each in images] == [b"one", b"two"]
assert file_name(images[0], folder) == "a.zip/street/x.png"
(member,) = list_images(f"{folder}/b.tar").table["uri"].to_pylist()
assert read_image_bytes(member) == b"three"
print("used")
"""


def test_a_package_adds_an_encoder_a_refinement_and_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, MODULE, GROUPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, timeout=120)
    assert done.stdout == "used\n", done.stderr


def test_a_package_adds_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, folder = tmp_path / "package", tmp_path / "images"
    package.mkdir()
    folder.mkdir()
    install(package, ZIP_READER, ["reco_ray.containers"])
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        file.writestr("street/x.png", b"one")
        file.writestr("b.tar#y@1+2", b"two")  # named like a member of a tar
    with tarfile.open(folder / "b.tar", "w") as tar:
        info = tarfile.TarInfo("z.png")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"three"))
    (folder / "c.mp4").write_bytes(b"a clip")
    pq.write_table(pa.table({"url": ["https://example.org/1.png"]}), folder / "a.parquet")
    monkeypatch.setenv("PYTHONPATH", str(package), prepend=":")
    done = subprocess.run(
        [sys.executable, "-c", USE_ZIPS, folder], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "used\n", done.stderr


USE_ENDPOINT = """
import asyncio, sys
from functools import partial
from types import SimpleNamespace

import httpx
from reco_ray.serving.access import limit_rate, require_key
from reco_ray.serving.app import build
from reco_ray.serving.keys import KeyRing
from reco_ray.serving.middleware import add_middlewares
from reco_ray.serving.options import Limits, ServeOptions
from reco_ray.serving.rate_limit import RateLimiter
from reco_ray.serving.routes import build_routes

keys, key = sys.argv[1:]
build(ServeOptions(keys=keys))
limits = Limits(bytes=1000, rate=0.001, burst=2)
app = build_routes(SimpleNamespace(limits=limits, options=ServeOptions(keys=keys)), True)
checks = [partial(require_key, KeyRing(keys)), partial(limit_rate, RateLimiter(limits.rate, limits.burst))]
metrics = SimpleNamespace(request=lambda *_: None)

async def ask():
    transport = httpx.ASGITransport(add_middlewares(app, limits, metrics, checks))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        url, header = "/v1/extensions/grey/owner", {"Authorization": f"Bearer {key}"}
        return [
            await client.get(url),
            await client.get(url, headers=header),
            await client.post(url, headers=header, content=bytes(2000)),
            await client.get(url, headers=header),
        ]

refused, answered, large, too_often = asyncio.run(ask())
assert refused.status_code == 401 and refused.json()["status"] == 401, refused.text
assert answered.json() == "anna" and answered.headers["Cache-Control"] == "no-store", answered.text
assert large.status_code == 413 and too_often.status_code == 429, (large.text, too_often.text)
described = app.openapi()["paths"]["/v1/extensions/grey/owner"]["get"]
assert {"200", "401", "403", "429"} <= set(described["responses"]) and described["security"], described
print("used")
"""


def test_a_package_adds_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, keys = tmp_path / "package", tmp_path / "keys"
    package.mkdir()
    install(package, ENDPOINT, ["reco_ray.endpoints"])
    key, line = new_key("anna")
    keys.write_text(line)
    monkeypatch.setenv("PYTHONPATH", str(package), prepend=":")
    done = subprocess.run(
        [sys.executable, "-c", USE_ENDPOINT, keys, key], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "used\n", done.stderr


AREAS = """
from reco_ray.mask_export.mask_format import MaskFormat

class Areas(MaskFormat):
    title = "Areas"
    streams = ("rows",)

    def write_part(self, part, images, plan, out):
        for image in images:
            present = image.concepts(plan)
            for label in present:
                out.add("rows", f"{image.name},{plan.labels[label]},{(image.labels == label).sum()}")
            out.count(len(present))

    def finish(self, plan, out):
        out.write("areas.csv", (f"{row}\\n" for row in out.lines("rows")))

FORMAT = Areas()
"""
USE_FORMAT = """
import sys
from pathlib import Path

from reco_ray.mask_export.load import MaskLoader
from reco_ray.mask_export.mask_format import Finisher
from reco_ray.mask_export.stage import _images, _lines, _units, find_format, plan_export
from reco_ray.mask_export.worker import ExportWorker
from reco_ray.registry import MASK_FORMATS
from reco_ray.requests import ExportMasksRequest

masks, out = sys.argv[1:]
assert MASK_FORMATS.names[-1] == "grey" and "coco-panoptic" in MASK_FORMATS.names
assert "grey" in ExportMasksRequest.model_fields["format"].description
plan, worker = plan_export(masks, with_images=False), None
worker = ExportWorker("grey", plan, masks, out)
worker.set_up("cpu")
names = []
for unit in _units(_images(masks, flat=False)):
    for name, rows in MaskLoader(masks, with_images=False)(unit):
        worker.work(name, rows)
        names.append(f"{name}.parquet")
find_format("grey").finish(plan, Finisher(out, lambda stream: _lines(f"{out}/parts", names, stream), 2, 3))
print(Path(out, "areas.csv").read_text())
"""


def test_a_package_adds_a_format_of_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    install(package, AREAS, ["reco_ray.mask_formats"])
    maps = {"a/x.jpg": np.repeat([[0, 1, 1], [2, 2, 2]], 8, axis=0), "y.jpg": np.full((4, 4), 1)}
    masks = write_masks(tmp_path, maps, ["background", "cat", "dog"], part_size=1)
    monkeypatch.setenv("PYTHONPATH", str(package), prepend=":")
    command = [sys.executable, "-c", USE_FORMAT, masks, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "a/x,cat,16\na/x,dog,24\ny,cat,16\n\n", done.stderr


def test_endpoints_that_cannot_be_used_stop_the_server_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "a = 1\n", ["reco_ray.endpoints"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(routes, "ENDPOINTS", Registry("HTTP endpoint", "reco_ray.endpoints", None))
    with pytest.raises(RecoError, match="HTTP endpoint 'grey': its module has no function build_router"):
        build(ServeOptions())


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "import a_module_that_is_not_there\n", GROUPS)
    monkeypatch.syspath_prepend(tmp_path)
    refinements = Registry("refinement", "reco_ray.refinements", "reco_ray.segmentation.refine")
    assert refinements.names == ["none", "crf", "pamr", "superpixels", "grey"]
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
        (CONTAINERS, "members"),
        (CONTAINERS, "owns"),
        (CONTAINERS, "read"),
    ):
        assert registry.names
        assert all(callable(getattr(registry.get(name), function)) for name in registry.names)
    assert all(REFINEMENTS.get(name).TITLE for name in REFINEMENTS.names)
    formats = [MASK_FORMATS.get(name).FORMAT for name in MASK_FORMATS.names]
    assert all(isinstance(each, MaskFormat) and each.title for each in formats)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        RecoError,
        match=r"unknown refinement 'pamer': known are none, crf, pamr, superpixels; did you mean pamr\?",
    ):
        REFINEMENTS.get("pamer")


def test_the_settings_know_the_names_without_importing_torch() -> None:
    code = "import sys, reco_ray.config as c; c.load_settings('mini'); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
