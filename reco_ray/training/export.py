"""Exports segmenters, including normalisation, to ONNX or torch.export.

Files of the artifact: `segmenter.onnx` or `segmenter.pt2`. Both map RGB `pixels`, uint8 (b, H, W, 3), to `logits`,
float32 (b, m, H, W), for any b, H and W. Sides that are not multiples of `stride` are padded, and the logits cropped.
Labels, palette, stride and image size are in the manifest and, as JSON, in the file itself: `reco_ray` of
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

from reco_ray.contents import ExportContent, SegmenterContent
from reco_ray.errors import MissingPackageError, RecoError, reason
from reco_ray.files import artifacts, storage
from reco_ray.outcome import Outcome
from reco_ray.training.network import Network
from reco_ray.training.segmenter import Segmenter

Format = Literal["onnx", "torch-export"]
FILES: dict[Format, str] = {"onnx": "segmenter.onnx", "torch-export": "segmenter.pt2"}
_MAX_STRIDES = 100_000  # per side; the exporter needs an upper bound
_TOLERANCE = 1e-3  # relative to the largest logit; the order of summation differs


class PixelsToLogits(nn.Module):
    """A network with its normalisation: uint8 (b, H, W, 3) -> float32 (b, m, H, W)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.module = network.module
        self._transform = network.transform

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Computes logits; sides must be multiples of the network's stride."""
        return self.module(self._transform.normalize(pixels))


class AnySize(nn.Module):
    """Accepts images of any size: pads them on the right and bottom and crops the output.

    The edge is repeated up to the next multiple of `stride`, at least two of them.
    """

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
        """Indices that pad a side, int64."""
        # Computed as a tensor, so that the exporter treats the number as a new symbol times the stride: it cannot track
        # rounded sides through the levels of a network. Only positive numbers, as ONNX divides integers towards zero.
        enough = (side + self._stride - 1) // self._stride
        strides = (torch.ones((), dtype=torch.int64) * enough).clamp(min=2).item()
        torch._check(strides >= 2)
        torch._check(strides <= _MAX_STRIDES)
        return torch.arange(strides * self._stride).clamp(max=side - 1)


def export_segmenter(uri: str, out: str, form: Format) -> Outcome:
    """Exports a Segmenter, and compares both on images of other sizes than the traced one.

    Args:
        uri: of the Segmenter.
        out: URI of the export.
        form: file format.

    Raises:
        RecoError: there is no Segmenter, packages are missing, the network cannot be traced, outputs differ, or the
            export cannot be written.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if form == "onnx" and missing:
        raise MissingPackageError(f'ONNX needs {", ".join(missing)}: pip install "reco-ray[export]"')
    made_at = artifacts.read_manifest(uri, SegmenterContent).made_at
    segmenter = Segmenter.from_artifact(uri, precision="fp32")
    made_from = {"segmenter": segmenter.uri, "segmenter_made_at": made_at, "format": form}
    writer = artifacts.ArtifactWriter(out, ExportContent, made_from)
    if manifest := writer.finished():
        return Outcome("export", writer.uri, manifest, new=False)
    stride = segmenter.network.stride
    content = ExportContent(
        file=FILES[form],
        labels=segmenter.labels,
        background=segmenter.background,
        palette=segmenter.palette.tolist(),
        image_size=segmenter.image_size,
        stride=stride,
    )
    metadata = json.dumps(content.model_dump())
    module = AnySize(PixelsToLogits(segmenter.network), stride).eval()
    program = trace(with_fixed_padding(module))
    with tempfile.TemporaryDirectory(prefix="reco-ray-") as folder:
        file = Path(folder) / FILES[form]
        if form == "onnx":
            run = _save_onnx(program, file, metadata)
        else:
            torch.export.save(program, file, extra_files={"reco_ray.json": metadata})
            run = program.module()  # not read from the file, as reading a .pt2 may unpickle
        content.largest_difference = largest_difference(module, run, stride)
        data = file.read_bytes()
    storage.write_bytes(storage.join(writer.uri, FILES[form]), data)
    counts = {"labels": len(segmenter.labels), "bytes": len(data)}
    return Outcome("export", writer.uri, writer.commit(counts, content))


def with_fixed_padding(module: nn.Module) -> nn.Module:
    """Returns a copy in which convolutions with TensorFlow's "same" padding have constant padding.

    timm computes the padding from the size of the input, which the exporter cannot track. For inputs that are multiples
    of the stride, as here at every level, it is kernel - stride, with the odd pixel at the end.
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
    """Traces a module of uint8 (b, H, W, 3) for any b, H and W.

    Raises:
        RecoError: the network cannot be traced.
    """
    sizes = {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = _pixels(2, 70, 100)
            return torch.export.export(module, (example,), dynamic_shapes={"pixels": sizes}, strict=False)
    except Exception as error:  # the exporter's errors have no common base class
        raise RecoError(f"the network cannot be exported for free sizes: {reason(error)}") from error


def largest_difference(module: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], stride: int) -> float:
    """Largest difference between the logits of `module` and `run`, on noise of three sizes.

    One size is not a multiple of the stride.

    Raises:
        RecoError: they differ by more than rounding errors.
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
            raise RecoError(
                f"the exported network returns {tuple(found.shape)} instead of {tuple(expected.shape)}"
            )
        difference = float((found - expected).abs().max())
        if not difference <= _TOLERANCE * float(expected.abs().max().clamp_min(1)):
            raise RecoError(
                f"the logits of the exported network differ from the segmenter's by {difference:g}"
            )
        largest = max(largest, difference)
    return largest


def _pixels(batch: int, height: int, width: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=random)


def _save_onnx(program: ExportedProgram, file: Path, metadata: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Writes the program as ONNX; returns a function that runs it."""
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():  # silence the exporter
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
