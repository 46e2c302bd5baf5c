"""Serving: serve, serve-key."""

import os
from typing import Annotated

import typer

from reco_ray.cli.app import app
from reco_ray.cli.options import Address, Device, Preset, Set, SettingsFile, Weights
from reco_ray.errors import UsageError
from reco_ray.storage import absolute


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="address to listen on; others than loopback need --keys")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    index: Annotated[str | None, typer.Option(help="index artifact that concepts are looked up in")] = None,
    state: Annotated[
        str, typer.Option(help="directory of vocabularies and cached references; they come back from it")
    ] = "reco-serve",
    segmenter: Annotated[
        list[str] | None, typer.Option(help="NAME=URI of a trained segmenter; repeatable")
    ] = None,
    examples: Annotated[str | None, typer.Option(help="images to try on the page")] = None,
    keys: Annotated[
        str | None, typer.Option(help="file of API keys, lines as `serve-key` prints them")
    ] = None,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """Serves any vocabulary over HTTP, with a page to try it; Ctrl-C finishes what was begun and stops."""
    overrides = list(set_ or [])
    own = {"models.device": device, "models.weights": absolute(weights) if weights else None}
    overrides += [f"{key}={value}" for key, value in own.items() if value is not None]
    from reco_ray.cluster import session
    from reco_ray.serving.options import ServeOptions, split_overrides
    from reco_ray.serving.server import require_keys, run_server

    serving, stages = split_overrides(overrides)
    options = ServeOptions(
        preset=preset,
        settings=settings,
        set=stages,
        index=index,
        state=state,
        segmenters=_pairs(segmenter or []),
        examples=examples,
        keys=keys,
        **serving,
    )
    require_keys(host, options)
    options.load()
    local = not (address or os.environ.get("RAY_ADDRESS"))
    with session(address):
        run_server(options, host, port, local=local)


@app.command("serve-key")
def serve_key(name: Annotated[str, typer.Argument(help="who it is for; owns the vocabularies")]) -> None:
    """Makes an API key: prints it, and the line for the file of --keys."""
    from reco_ray.serving.keys import new_key

    key, line = new_key(name)
    print(f"key   {key}")
    print(f"line  {line}")


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, uri = text.partition("=")
        if not (name and equals and uri):
            raise UsageError(f"--segmenter {text!r}: expected NAME=URI")
        if name in pairs:
            raise UsageError(f"--segmenter {text!r}: the name is given twice")
        pairs[name] = uri
    return pairs
