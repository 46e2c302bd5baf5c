"""The labelling configuration of a Label Studio project: which labels its brush has, and on which image."""

from dataclasses import dataclass
from xml.etree import ElementTree

from reco_ray.serving.problems import Problem

_MOST_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class BrushControl:
    """A `<BrushLabels>` and its `<Image>`.

    names: of the brush and of the image. field: of a task's data, with the image. labels: of the brush.
    """

    names: tuple[str, str]
    field: str
    labels: list[str]


def parse_label_config(config: object) -> BrushControl:
    """Finds the brush of a configuration.

    Raises:
        Problem: 422, the configuration is not XML, or has no brush on an image.
    """
    if not isinstance(config, str) or not config.strip():
        raise Problem(422, "label_config: missing, expected the labelling configuration of the project")
    # Entities, by which a short document can become a huge one, exist only in documents that declare them.
    if len(config) > _MOST_CHARACTERS or "<!" in config.replace("<!--", ""):
        raise Problem(422, "label_config: too long, or with declarations")
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise Problem(422, f"label_config: not XML: {error}") from None
    images = {image.get("name"): image.get("value", "") for image in root.iter("Image")}
    for brush in root.iter("BrushLabels"):
        value = images.get(brush.get("toName"), "")
        if brush.get("name") and value.startswith("$"):
            labels = [label.get("value", "") for label in brush.iter("Label")]
            names = str(brush.get("name")), str(brush.get("toName"))
            return BrushControl(names, value[1:], [label for label in labels if label])
    raise Problem(
        422, "label_config: has no <BrushLabels> whose toName is an <Image> with a value such as $image"
    )
