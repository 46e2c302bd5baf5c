"""The commands `weights`, `verify`, `doctor` and `serve-key`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from reco_ray.cli.commands import app, weights_app
from reco_ray.config import load_settings
from reco_ray.errors import MissingPackageError, RecoError, UnreadableError, UsageError
from reco_ray.files.storage import absolute, join
from reco_ray.presentation.console import console

if TYPE_CHECKING:
    from reco_ray.cli.doctor import Check


@weights_app.command("pull")
def pull_weights(
    weights: Annotated[str, typer.Option(envvar="RECO_WEIGHTS", help="folder to fill")],
    spec: Annotated[str | None, typer.Argument(help="one model, such as open_clip:ViT-B-16/openai")] = None,
    preset: Annotated[str | None, typer.Option(help="all models of a preset")] = None,
) -> None:
    """Downloads weights into a folder, to be carried to where there is no network."""
    if (spec is None) == (preset is None):
        raise UsageError("name either one model or --preset NAME")
    from reco_ray.models.weights import needed, pull

    specs = [str(spec)] if preset is None else needed(load_settings(preset).models.specs)
    if not specs:
        raise RecoError(f"preset {preset}: nothing to pull, its weights come as Python packages")
    for each in specs:
        print(pull(each, weights))


@weights_app.command("list")
def list_weights(
    weights: Annotated[str, typer.Option(envvar="RECO_WEIGHTS", help="the folder")],
) -> None:
    """Says which models' weights a folder holds."""
    from reco_ray.models.weights import list_local

    found = list_local(weights)
    if not found:
        raise MissingPackageError(f"{weights}: no weights in it: fill it with `reco-ray weights pull`")
    for each in found:
        print(each)


@app.command()
def verify(
    artifacts: Annotated[list[str], typer.Argument(help="artifacts, such as an index or a segmenter")],
) -> None:
    """Compares every file of an artifact with the checksums of its manifest; exits 1 where one differs."""
    from reco_ray.files.verify import verify as check

    differing = 0
    for uri in artifacts:
        found = check(uri)
        for path, what in found.differences[:_SHOWN]:
            print(f"{join(absolute(uri), path)}: {what}")
        if (more := len(found.differences) - _SHOWN) > 0:
            print(f"{absolute(uri)}: and {more:,} more")
        if not found.differences:
            print(f"{absolute(uri)}: {found.files:,} files, {found.bytes:,} bytes as committed")
        differing += len(found.differences)
    if differing:
        raise UnreadableError(
            f"{differing:,} files are not what was committed: make the artifact again, or fetch it again"
        )


_SHOWN = 20  # differences printed per artifact


@app.command()
def doctor() -> None:
    """Says which versions, devices and weights are here, and whether Ray starts."""
    from reco_ray.cli.doctor import examine

    checks: list[Check] = examine()
    for check in checks:
        mark, colour = {True: ("ok", "green"), False: ("no", "red"), None: ("  ", "")}[check.good]
        console.print(Text.assemble((mark, colour), f" {check.name:<16} {check.finding}"))
    if any(check.good is False and check.needed for check in checks):
        raise typer.Exit(1)


@app.command("serve-key")
def serve_key(name: Annotated[str, typer.Argument(help="who it is for; owns the vocabularies")]) -> None:
    """Makes an API key: prints it, and the line for the file of --keys."""
    from reco_ray.serving.keys import new_key

    key, line = new_key(name)
    print(f"key   {key}")
    print(f"line  {line}")
