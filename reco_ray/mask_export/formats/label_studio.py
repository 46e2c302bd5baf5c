"""Label Studio: tasks with predictions as `tasks/*.json`, `label-config.xml` for the project, images in `images/`.

A prediction has one brush region for each concept. Images that are written beside the tasks are named as Label Studio's
local files, with its document root at the export; others by their own address.
"""

from collections.abc import Iterable, Iterator
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from reco_ray.mask_export.brush import FROM, TO, prediction
from reco_ray.mask_export.json_pieces import dump
from reco_ray.mask_export.mask_format import ExportPlan, Finisher, MaskedImage, MaskFormat, PartWriter


class LabelStudio(MaskFormat):
    """Label Studio's predictions."""

    title = "Label Studio predictions"
    objects = "regions"
    image_folder = "images"

    def write_part(self, part: str, images: Iterable[MaskedImage], plan: ExportPlan, out: PartWriter) -> None:
        """Writes a file of tasks, small enough for Label Studio's import."""
        concepts = dict(enumerate(plan.labels[plan.first :], plan.first))
        tasks = []
        for image in images:
            shown = {label: concepts[label] for label in image.concepts(plan)}
            found = prediction(image.labels, shown, image.scores, plan.model_version)
            tasks.append(dump({"data": {"image": _address(image), "uri": image.uri}, "predictions": [found]}))
            out.count(len(shown))
        out.write(f"tasks/{part}.json", ("[\n" + ",\n".join(tasks) + "\n]\n").encode())

    def finish(self, plan: ExportPlan, out: Finisher) -> None:
        """Writes the labelling configuration of the project."""
        out.write("label-config.xml", label_config(plan.concepts, plan.concept_colours()))


def label_config(concepts: Iterable[str], colours: Iterable[tuple[int, int, int]]) -> Iterator[str]:
    """The configuration of a project whose annotators correct the masks with the brush."""
    yield f'<View>\n  <Image name="{TO}" value="$image" zoom="true"/>\n'
    yield f'  <BrushLabels name="{FROM}" toName="{TO}">\n'
    for name, (red, green, blue) in zip(concepts, colours, strict=True):
        yield f'    <Label value={quoteattr(name)} background="#{red:02x}{green:02x}{blue:02x}"/>\n'
    yield "  </BrushLabels>\n</View>\n"


def _address(image: MaskedImage) -> str:
    if image.image is not None:
        return f"/data/local-files/?d={quote(f'images/{image.file_name}')}"
    if "://" in image.uri:
        return image.uri
    return f"/data/local-files/?d={quote(image.uri.lstrip('/'))}"


FORMAT = LabelStudio()
