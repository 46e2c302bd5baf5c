"""A page to look at: why every concept looks as it does, and what was found in every image. One file, no links out."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from reco_ray.contents import MasksContent, ReferencesContent, SegmenterContent
from reco_ray.corpus.decode import decode_image
from reco_ray.corpus.read import read_image_bytes
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.contact_sheet import photo_place
from reco_ray.files import artifacts, storage
from reco_ray.presentation.html import css_colour, data_uri, jpeg_uri, render_page, shared_file
from reco_ray.segmentation.masks import REGIONS_SCHEMA, decode_png, mask_file
from reco_ray.segmentation.overlay import overlay
from reco_ray.vocabulary.chosen_images import CHOICES, ChosenImage

MOST_IMAGES = 48  # embedded in the page, so that it opens at once however large the run
_WIDTH = 560  # pixels of an embedded picture
_LEAST_SHARE = 0.001  # of an image, below which a legend does not list a concept


def write_report(
    masks: str, manifest: artifacts.Manifest[MasksContent], out: str, references: str | None = None
) -> str:
    """Writes `index.html` about masks, and about what made them: references, or a trained segmenter.

    Args:
        masks: URI of the artifact.
        manifest: its own.
        out: URI of the folder of the page.
        references: URI of the references behind the masks; None: those that made them, if any did.

    Returns:
        URI of the page.

    Raises:
        RecoError: an artifact is missing or unfinished.
    """
    content = manifest.content
    references = references or content.references
    bank = None if references is None else ReferenceBank.open(references)
    segmenter = None if content.segmenter is None else _segmenter(content.segmenter)
    colours = np.array(content.palette, np.uint8)
    columns = [name for name in REGIONS_SCHEMA.names if name not in ("mask", "rle")]
    regions = storage.read_table(storage.join(masks, "regions"), columns)
    names = regions["name"].unique().to_pylist()
    page = render_page(
        "report.html",
        concepts=[] if bank is None else _concepts(bank, colours[-len(bank.vocabulary.names) :]),
        exemplars_script=data_uri(shared_file("exemplars.js"), "text/javascript"),
        exemplars_style=shared_file("exemplars.css").decode(),
        labels=[
            {"name": name, "colour": css_colour(colour)}
            for name, colour in zip(content.labels, colours, strict=True)
        ],
        segmenter=segmenter,
        images=[_image(masks, name, regions, colours) for name in sorted(names)[:MOST_IMAGES]],
        image_count=len(names),
        counts=manifest.counts,
        made_by=manifest.made_by,
        made_at=manifest.made_at,
        model="" if bank is None else bank.model,
        refine=manifest.made_from["segment.refine"],
        background="background" in content.labels,
        probabilities=content.holds_probabilities(manifest.made_from),
    )
    uri = storage.join(out, "index.html")
    storage.write_bytes(uri, page)
    return uri


def _segmenter(uri: str) -> dict[str, object]:
    """What the page says of the segmenter, and its picture of held-out frames at the step that was kept."""
    manifest = artifacts.read_manifest(uri, SegmenterContent)
    content, picture = manifest.content, None
    if content.best_step is not None:
        file = storage.join(uri, "examples", f"step-{content.best_step:06d}.jpg")
        picture = data_uri(storage.read_bytes(file)) if storage.exists(file) else None
    return {
        "architecture": content.architecture,
        "image_size": content.image_size,
        "step": content.best_step,
        "agreement": content.agreement,
        "images": manifest.counts.get("images"),
        "picture": picture,
    }


def _concepts(bank: ReferenceBank, colours: np.ndarray) -> list[dict[str, object]]:
    """colours: uint8 (m, 3), of the concepts, without that of a background."""
    exemplars = bank.exemplars()
    made_from = artifacts.read_manifest(bank.uri, ReferencesContent).made_from
    whole = made_from.get("references.geometry") != "crop"
    entries = []
    for index, concept in enumerate(bank.vocabulary.concepts):
        rows = exemplars.filter(pc.equal(exemplars["concept"], concept.name)).to_pylist()
        similarities = [row["similarity"] for row in rows if row["similarity"] is not None]
        entries.append(
            {
                "name": concept.name,
                "words": concept.words,
                "colour": css_colour(colours[index]),
                "sheet": data_uri(storage.read_bytes(bank.sheet_uri(index))),
                "exemplars": len(rows),
                "best": max(similarities, default=None),
                "worst": min(similarities, default=None),
                "choosing": {
                    "name": concept.name,
                    "exemplars": [_to_choose(row, len(rows), whole) for row in rows],
                    "chosen": {
                        **{kind: [_named(each) for each in getattr(concept, kind)] for kind in CHOICES},
                        "only_chosen": concept.only_chosen,
                    },
                },
            }
        )
    return entries


def _to_choose(row: dict[str, Any], count: int, whole: bool) -> dict[str, object]:
    """What the page needs of an exemplar to choose it; `tile`: where on the contact sheet its photograph is."""
    # Regions cannot be drawn on parts of photographs, nor where references of earlier versions do not know the size.
    width, height = (row.get("width"), row.get("height")) if whole else (None, None)
    similarity = row["similarity"]
    return {
        "image": row["uri"],
        "name": row["uri"].rpartition("/")[2],
        "note": "" if similarity is None else f"similarity {similarity:.2f}",
        "width": width,
        "height": height,
        "tile": photo_place(row["rank"], count, width / height if width and height else 1.0),
    }


def _named(each: ChosenImage) -> dict[str, object]:
    name = each.image.rpartition("/")[2]
    return {"image": each.image, "name": name, "boxes": each.boxes, "points": each.points}


def _image(masks: str, name: str, regions: pa.Table, colours: np.ndarray) -> dict[str, object]:
    rows = regions.filter(pc.equal(regions["name"], name)).sort_by([("area", "descending")]).to_pylist()
    data = read_image_bytes(rows[0]["uri"])
    photo, _, _ = decode_image(data, max_pixels=178_956_970, short_side=_WIDTH)
    photo.thumbnail((_WIDTH, _WIDTH))
    labels = decode_png(storage.read_bytes(storage.join(masks, mask_file(name))))
    small = np.asarray(Image.fromarray(labels).resize(photo.size, Image.Resampling.NEAREST))
    total = sum(row["area"] for row in rows)
    return {
        "name": name,
        "photo": jpeg_uri(photo),
        "overlay": jpeg_uri(Image.fromarray(overlay(np.asarray(photo), small, colours))),
        "size": f"{rows[0]['width']} x {rows[0]['height']}",
        "legend": [
            {
                "name": row["concept"],
                "colour": css_colour(colours[row["label"]]),
                "share": row["area"] / total,
                "score": row["score"],
            }
            for row in rows
            if row["area"] >= _LEAST_SHARE * total
        ],
    }
