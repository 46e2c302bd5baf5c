"""Where in exemplars a concept may be: boxes and points of an image, in parts of what the models see of it."""

from reco_ray.vocabulary.chosen_images import ChosenImage, shown

Region = list[list[float]]  # boxes [left, top, right, bottom] in parts of the square that the models see


def crop_regions(image: ChosenImage, geometry: str) -> Region | None:
    """The boxes and points of an image, in parts of the square that co-segmentation takes of it.

    Args:
        image: opened; a point is a box without extent.
        geometry: "whole" or "crop", as `references.geometry`.

    Returns:
        None if the image has neither boxes nor points.

    Raises:
        ValueError: a box or point is outside the part that `geometry` keeps.
    """
    marks = [*image.boxes, *((x, y, x, y) for x, y in image.points)]
    if not marks or not image.width or not image.height:
        return None
    width, height = float(image.width), float(image.height)
    side_x, side_y = (width, height) if geometry == "whole" else (min(width, height),) * 2
    left, top = (width - side_x) / 2, (height - side_y) / 2
    region = []
    for mark in marks:
        x0, y0, x1, y1 = (
            (mark[0] - left) / side_x,
            (mark[1] - top) / side_y,
            (mark[2] - left) / side_x,
            (mark[3] - top) / side_y,
        )
        if x1 < 0 or y1 < 0 or x0 > 1 or y0 > 1:
            raise ValueError(
                f"{shown(tuple(mark))} is outside the centre of the image, which references.geometry=crop keeps"
            )
        region.append([max(0.0, x0), max(0.0, y0), min(1.0, x1), min(1.0, y1)])
    return region
