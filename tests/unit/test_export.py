"""Exported segmenters give the logits of the segmenter they were made from, on any size and number of images."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from images import photograph
from training_data import write_segmenter

from reco_ray.cli import main
from reco_ray.errors import RecoError
from reco_ray.training import Segmenter
from reco_ray.training import export as exporting

SIZES = [(1, 64, 96), (3, 96, 64)]
ODD_SIZES = [(1, 70, 97), (2, 33, 64), (1, 5, 1)]  # no multiples of the stride, or fewer than two
LABELS = 3
# The network of `mini` on a smaller encoder of its kind: what exporting takes grows with the number of layers.
NETWORK = (
    "smp:FPN/tu-tf_mobilenetv3_small_minimal_100@decoder_pyramid_channels=32,decoder_segmentation_channels=32"
)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_segmenter(tmp_path_factory.mktemp("segmenter") / "segmenter", LABELS, spec=NETWORK)


def batch(count: int, height: int, width: int) -> torch.Tensor:
    pictures = [photograph(number).resize((width, height)) for number in range(count)]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_an_export_agrees_with_the_segmenter(form: exporting.Format, segmenter: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["export", segmenter, "--out", str(out), "--format", form])
    manifest = json.loads((out / "manifest.json").read_text())
    file = out / exporting.FILES[form]
    if form == "onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        inside = session.get_modelmeta().custom_metadata_map["reco_ray"]
        (taken,) = session.get_inputs()
        assert (taken.name, taken.type, taken.shape[3]) == ("pixels", "tensor(uint8)", 3)

        def run(pixels: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
    else:
        extra = {"reco_ray.json": ""}
        run = torch.export.load(file, extra_files=extra).module()
        inside = extra["reco_ray.json"]
    eager = Segmenter.from_artifact(segmenter, precision="fp32")
    for size in SIZES:
        pixels = batch(*size)
        with torch.no_grad():
            found = run(pixels)
        assert found.shape == (size[0], LABELS, *size[1:])
        torch.testing.assert_close(found, eager.logits(pixels), rtol=1e-3, atol=1e-4)
    for count, height, width in ODD_SIZES:
        pixels = batch(count, height, width)
        rows, columns = (max(-(-side // 32), 2) * 32 for side in (height, width))
        padded = np.pad(pixels, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)), mode="edge")
        with torch.no_grad():
            found = run(pixels)
        assert found.shape == (count, LABELS, height, width)
        expected = eager.logits(torch.from_numpy(padded))[..., :height, :width]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    described = json.loads(inside)
    assert described["labels"] == eager.labels
    assert described["palette"] == eager.palette.tolist()
    assert (described["image_size"], described["stride"]) == (64, 32)
    assert manifest["content"].items() >= described.items()


def test_an_export_that_differs_is_refused() -> None:
    module = torch.nn.Flatten()

    def wrong(pixels: torch.Tensor) -> torch.Tensor:
        return module(pixels.float()) + 10

    with pytest.raises(RecoError, match="differ from the segmenter's by 10"):
        exporting.largest_difference(_Floats(module), wrong, 8)


def test_a_network_with_a_size_of_its_own_is_one_line() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.view(2, 70, 100, 3)

    with pytest.raises(RecoError, match="cannot be exported for free sizes"):
        exporting.trace(Fixed())


class _Floats(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.module(pixels.float())


def test_what_is_no_segmenter_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "this segmenter artifact is not there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
