"""A segmenter as one file for other runtimes, ONNX or torch.export, its normalisation inside.

Files of the artifact: `segmenter.onnx` or `segmenter.pt2`. Either takes RGB `pixels`, uint8 (b, H, W, 3), to `logits`,
float32 (b, m, H, W); b, H and W are free. Sides that are no multiples of `stride` are padded inside, and the logits
cropped back. Labels, palette, stride and image size are in the manifest and, as JSON, in the file itself: `reco_ray` of
ONNX's metadata, the extra file `reco_ray.json` of a .pt2.
"""

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.export import Dim, ExportedProgram

from reco_ray import storage
from reco_ray.errors import RecoError, reason
from reco_ray.training.network import Network
from reco_ray.training.segmenter import KIND as SEGMENTER_KIND
from reco_ray.training.segmenter import Segmenter

KIND = "exported-segmenter"
Format = Literal["onnx", "torch-export"]
FILES: dict[Format, str] = {"onnx": "segmenter.onnx", "torch-export": "segmenter.pt2"}
_MOST_STRIDES = 100_000  # of a side: a bound that the exporter needs to know
_TOLERANCE = 1e-3  # of the largest logit: another order of the same sums


class PixelsToLogits(nn.Module):
    """A network with its normalisation: uint8 (b, H, W, 3) -> float32 (b, m, H, W)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.module = network.module
        self._transform = network.transform

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Sides must be multiples of the network's stride."""
        return self.module(self._transform.normalize(pixels))


class AnySize(nn.Module):
    """Pads images at the right and at the bottom, by repeating their edge, to the next multiple of `stride`, at least
    two of them; and crops what comes out back to their size."""

    def __init__(self, module: nn.Module, stride: int) -> None:
        super().__init__()
        self.module, self._stride = module, stride

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (b, H, W, 3) -> float32 (b, m, H, W)."""
        height, width = pixels.shape[1:3]
        padded = pixels.index_select(1, self._padded(height)).index_select(2, self._padded(width))
        logits = self.module(padded)
        return logits.index_select(2, torch.arange(height)).index_select(3, torch.arange(width))

    def _padded(self, side: int) -> torch.Tensor:
        """Which pixel of a side stands at each place of the padded one, int64."""
        # By way of a tensor, so that the exporter sees a new number, of which it knows only that it is multiplied by
        # the stride: it cannot follow sides that are rounded up through the levels of a network.
        # Of positive numbers only: ONNX divides integers towards zero.
        enough = (side + self._stride - 1) // self._stride
        strides = (torch.ones((), dtype=torch.int64) * enough).clamp(min=2).item()
        torch._check(strides >= 2)
        torch._check(strides <= _MOST_STRIDES)
        return torch.arange(strides * self._stride).clamp(max=side - 1)


def export_segmenter(uri: str, out: str, form: Format) -> tuple[storage.Manifest, bool]:
    """Writes a Segmenter as a file of `form`, and compares the two on images of other sizes than it was traced with.

    Returns:
        The manifest, and whether there was anything to do.

    Raises:
        RecoError: no Segmenter, missing packages, a network that cannot be traced, a result that differs, unwritable
            output.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if form == "onnx" and missing:
        raise RecoError(f'ONNX needs {", ".join(missing)}: pip install "reco-ray[export]"')
    made_at = storage.read_manifest(uri, SEGMENTER_KIND).made_at
    segmenter = Segmenter.from_artifact(uri, precision="fp32")
    made_from = {"segmenter": segmenter.uri, "segmenter_made_at": made_at, "format": form}
    writer = storage.ArtifactWriter(out, KIND, made_from)
    if manifest := writer.finished():
        return manifest, False
    stride = segmenter.network.stride
    content = {
        "file": FILES[form],
        "labels": segmenter.labels,
        "background": segmenter.background,
        "palette": segmenter.palette.tolist(),
        "image_size": segmenter.image_size,
        "stride": stride,
    }
    module = AnySize(PixelsToLogits(segmenter.network), stride).eval()
    program = trace(with_fixed_padding(module))
    with tempfile.TemporaryDirectory(prefix="reco-ray-") as folder:
        file = Path(folder) / FILES[form]
        if form == "onnx":
            run = _save_onnx(program, file, json.dumps(content))
        else:
            torch.export.save(program, file, extra_files={"reco_ray.json": json.dumps(content)})
            run = program.module()  # not the file: whoever reads a .pt2 may have to unpickle
        content["largest_difference"] = largest_difference(module, run, stride)
        data = file.read_bytes()
    storage.write_bytes(storage.join(writer.uri, FILES[form]), data)
    return writer.commit({"labels": len(segmenter.labels), "bytes": len(data)}, content), True


def with_fixed_padding(module: nn.Module) -> nn.Module:
    """A copy whose convolutions of TensorFlow's "same" padding pad alike for every size.

    timm computes their padding from the input's size, and the exporter loses itself in the formulas. Where the input is
    a multiple of the stride, as it is at every level here, it is kernel - stride, the odd pixel at the end.
    """
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, Conv2dSame):
                edges: list[int] = []
                for kernel, dilation, step in zip(conv.kernel_size, conv.dilation, conv.stride, strict=True):
                    pad = max((kernel - 1) * dilation + 1 - step, 0)
                    edges = [pad // 2, pad - pad // 2, *edges]  # the last dimension first
                conv.__class__ = nn.Conv2d  # type: ignore[assignment]
                setattr(
                    parent, name, nn.Sequential(nn.ZeroPad2d((edges[0], edges[1], edges[2], edges[3])), conv)
                )
    return module


def trace(module: nn.Module) -> ExportedProgram:
    """uint8 (b, H, W, 3) -> ..., traced for every b, H and W.

    Raises:
        RecoError: the network cannot be traced so.
    """
    sizes = {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = _pixels(2, 70, 100)
            return torch.export.export(module, (example,), dynamic_shapes={"pixels": sizes}, strict=False)
    except Exception as error:  # the exporter has many, without a common base
        raise RecoError(f"the network cannot be exported for free sizes: {reason(error)}") from error


def largest_difference(module: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], stride: int) -> float:
    """Between the logits of `module` and `run` on noise of three sizes, one of them no multiple of the stride.

    Raises:
        RecoError: they differ by more than rounding.
    """
    largest = 0.0
    for size in (
        (1, 2 * stride, 5 * stride),
        (3, 4 * stride, 2 * stride),
        (1, 3 * stride - 1, 2 * stride + 1),
    ):
        pixels = _pixels(*size)
        with torch.no_grad():
            expected, found = module(pixels), run(pixels)
        if found.shape != expected.shape:
            raise RecoError(f"what was exported gives {tuple(found.shape)} for {tuple(expected.shape)}")
        difference = float((found - expected).abs().max())
        if not difference <= _TOLERANCE * float(expected.abs().max().clamp_min(1)):
            raise RecoError(f"what was exported differs from the segmenter, by {difference:g} in a logit")
        largest = max(largest, difference)
    return largest


def _pixels(batch: int, height: int, width: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=random)


def _save_onnx(program: ExportedProgram, file: Path, metadata: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Writes the program as ONNX; returns what runs it."""
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():  # the exporter is talkative
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                program, dynamo=True, input_names=["pixels"], output_names=["logits"], verbose=False
            )
    except Exception as error:  # as for `trace`
        raise RecoError(f"the network cannot be written as ONNX: {reason(error)}") from error
    made.model.metadata_props["reco_ray"] = metadata
    made.save(file)
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
