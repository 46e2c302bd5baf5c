"""The typer applications that commands are registered with."""

import typer

from reco_ray.requests import Request

ADDRESS_HELP = Request.model_fields["address"].description

app = typer.Typer(
    help="Concept names and unlabelled images in, a semantic segmenter out.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
weights_app = typer.Typer(help="The models' weights, for machines without a network.", rich_markup_mode=None)
app.add_typer(weights_app, name="weights")
