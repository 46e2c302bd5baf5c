"""Images that a person chose for a concept, or against it, and where in them the concept is."""

import math
import os
import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from reco_ray.files.storage import absolute, beside

MOST_REGIONS = 100  # boxes, and points, of one image
MOST_IMAGES = 10_000  # of one list of a concept
_Number = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Box = tuple[_Number, _Number, _Number, _Number]
Point = tuple[_Number, _Number]


class ChosenImage(BaseModel):
    """An image and, if it is an exemplar, where the concept is in it.

    image: path, URI, or id (SHA-256 of the bytes, hex).
    boxes: [left, top, right, bottom] in pixels of the upright image.
    points: [x, y] in the same.
    image_id, width, height: of the image, filled in when it is opened.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(min_length=1, max_length=4096)
    boxes: tuple[Box, ...] = Field(default=(), max_length=MOST_REGIONS)
    points: tuple[Point, ...] = Field(default=(), max_length=MOST_REGIONS)
    image_id: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    width: int | None = None
    height: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """Reads a name alone as an image without regions, and `box` and `point` as lists of one."""
        if isinstance(value, str):
            return {"image": value}
        if not isinstance(value, dict):
            if isinstance(value, cls):
                return value
            raise ValueError("expected an image, or {image: ..., box: [left, top, right, bottom]}")
        fields = dict(value)
        for one, several in (("box", "boxes"), ("point", "points")):
            if one in fields:
                if several in fields:
                    raise ValueError(f"give either {one} or {several}")
                fields[several] = [fields.pop(one)]
        return fields

    @field_validator("boxes")
    @classmethod
    def _check_boxes(cls, boxes: tuple[Box, ...]) -> tuple[Box, ...]:
        for left, top, right, bottom in boxes:
            if not (left < right and top < bottom):
                raise ValueError(
                    f"{shown((left, top, right, bottom))} is no box: expected [left, top, right, bottom] in pixels"
                )
        return boxes

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in serialize(self).items() if value not in (None, (), [])}

    @property
    def content(self) -> dict[str, object]:
        """What a reference depends on: the image by its content, if it was opened, and the regions."""
        return {
            "image": self.image_id or self.image,
            "boxes": [list(box) for box in self.boxes],
            "points": [list(point) for point in self.points],
        }

    def opened(self, image_id: str, width: int, height: int) -> "ChosenImage":
        """A copy with the id and the size of the image.

        Raises:
            ValueError: a box or point is outside the image.
        """
        for left, top, right, bottom in self.boxes:
            if right > width or bottom > height:
                raise ValueError(
                    f"box {shown((left, top, right, bottom))} is outside the image of {width} x {height} pixels"
                )
        for x, y in self.points:
            if x >= width or y >= height:
                raise ValueError(f"point {shown((x, y))} is outside the image of {width} x {height} pixels")
        return self.model_copy(update={"image_id": image_id, "width": width, "height": height})


class Chosen(BaseModel):
    """The images that a person chose for one concept.

    rejected: images that are no exemplars; the next of the ranking take their place.
    pinned: images of the corpus that are exemplars, whatever their rank.
    examples: images from elsewhere that are exemplars, before all others.
    only_chosen: whether pinned images and examples are all exemplars; nothing is retrieved.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rejected: tuple[ChosenImage, ...] = Field(default=(), max_length=MOST_IMAGES)
    pinned: tuple[ChosenImage, ...] = Field(default=(), max_length=MOST_IMAGES)
    examples: tuple[ChosenImage, ...] = Field(default=(), max_length=MOST_IMAGES)
    only_chosen: bool = False

    @field_validator("rejected", "pinned", "examples", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """Reads an empty value as an empty list."""
        return () if value is None or value == "" else value

    @model_validator(mode="after")
    def _check(self) -> "Chosen":
        for kind in CHOICES:
            seen: set[str] = set()
            for name in (each.image for each in getattr(self, kind)):
                if name in seen:
                    raise ValueError(f"{kind}: {name} is given twice")
                seen.add(name)
        if any(each.boxes or each.points for each in self.rejected):
            raise ValueError("rejected: an image that is rejected has no box or point")
        exemplars = {each.image for each in (*self.pinned, *self.examples)}
        if self.only_chosen and not exemplars:
            raise ValueError("only_chosen: needs a pinned image or an example")
        both = next((each.image for each in self.rejected if each.image in exemplars), None)
        if both is not None:
            raise ValueError(f"{both} is both rejected and chosen as an exemplar")
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leaves empty fields out, so that what has no chosen images is written as before they existed."""
        optional = (*CHOICES, "only_chosen")
        return {name: value for name, value in serialize(self).items() if name not in optional or value}

    @property
    def chosen(self) -> bool:
        """Whether anything was chosen."""
        return bool(self.rejected or self.pinned or self.examples)


CHOICES = ("rejected", "pinned", "examples")


def is_image_id(name: str) -> bool:
    """Whether an image is named by the digest of its bytes."""
    return re.fullmatch("[0-9a-f]{64}", name) is not None


def images_beside(chosen: Chosen, uri: str) -> dict[str, tuple[ChosenImage, ...]]:
    """The images of each choice, with paths that are relative to the folder of the file at `uri` made absolute."""

    def place(each: ChosenImage) -> ChosenImage:
        if is_image_id(each.image):
            return each
        return each.model_copy(
            update={"image": absolute(beside(absolute(uri), os.path.expanduser(each.image)))}
        )

    return {kind: tuple(place(each) for each in getattr(chosen, kind)) for kind in CHOICES}


def shown(numbers: tuple[float, ...]) -> str:
    """Coordinates as a person writes them: `[10, 20.5]`."""
    return (
        "[" + ", ".join(str(int(n)) if math.isfinite(n) and n == int(n) else f"{n:g}" for n in numbers) + "]"
    )
