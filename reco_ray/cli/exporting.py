"""Export: a segmenter for other runtimes."""

from typing import Annotated, Literal

import typer

from reco_ray.cli.app import app
from reco_ray.cli.options import Out, report


@app.command()
def export(
    segmenter: Annotated[str, typer.Argument(help="a segmenter artifact, as `train` makes it")],
    out: Out,
    form: Annotated[
        Literal["onnx", "torch-export"], typer.Option("--format", help="onnx, or torch-export for a .pt2")
    ] = "onnx",
) -> None:
    """Writes a segmenter as ONNX or torch.export: uint8 pixels in, logits out, labels and palette inside."""
    from reco_ray.training.export import export_segmenter

    report("export", out, *export_segmenter(segmenter, out, form))
