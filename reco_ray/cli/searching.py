"""Looking into a corpus: search."""

import re
from typing import Annotated

import typer

from reco_ray.cli.app import app
from reco_ray.cli.options import Device, Preset, Set, SettingsFile, Weights, settings_of
from reco_ray.console import console
from reco_ray.errors import UsageError
from reco_ray.storage import absolute, join, write_bytes


@app.command()
def search(
    index: Annotated[str, typer.Option(help="an index artifact")],
    words: Annotated[str | None, typer.Argument(help="what to look for")] = None,
    image: Annotated[str | None, typer.Option(help="an image to find the like of, in place of words")] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="how many hits; default 20, or all")] = None,
    prefix: Annotated[str | None, typer.Option(help="only images whose path or URI begins with this")] = None,
    out: Annotated[str, typer.Option(help="directory for the contact sheet of the hits")] = "reco-search",
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    device: Device = None,
    weights: Weights = None,
) -> None:
    """Finds the images of a corpus that words, or an image, describe; needs no cluster."""
    words = (words or "").strip() or None
    if (words is None) == (image is None):
        raise UsageError('give either words, such as "a rusty fire hydrant", or --image FILE')
    chosen = settings_of(preset, settings, set_, device=device, weights=weights)
    from reco_ray.corpus.search import hits_sheet, search_corpus

    hits = search_corpus(index, chosen, words=words, image=image, k=k, prefix=_prefix(prefix))
    print("rank  similarity  uri")
    for hit in hits.to_pylist():
        print(f"{hit['rank']:>4}  {hit['similarity']:>10.4f}  {hit['uri']}")
    name = re.sub(r"\W+", "-", (words or str(image).rpartition("/")[2]).lower()).strip("-")[:60] or "hits"
    sheet = join(out, f"{name}.jpg")
    write_bytes(sheet, hits_sheet(hits, chosen.embed.max_pixels))
    console.print(f"sheet      {absolute(sheet)}")


def _prefix(prefix: str | None) -> str | None:
    """A local path as the index has it: absolute, with the slash at its end that tells a/b/ from a/bc."""
    if prefix is None or "://" in prefix:
        return prefix
    return absolute(prefix) + ("/" if prefix.endswith("/") else "")
