"""Parses requests into images and options, from forms, raw bodies or JSON with base64."""

import hashlib
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.requests import Request

from reco_ray.config import Refinement
from reco_ray.corpus.decode import DecodeError, decode_image, is_image
from reco_ray.serving.base64_images import SVG, image_bytes
from reco_ray.serving.bodies import (
    MULTIPART,
    URLENCODED,
    Fields,
    Upload,
    is_json,
    merge_fields,
    read_json_images,
    read_multipart,
    read_urlencoded,
    split_names,
)
from reco_ray.serving.contract import ConceptImages, VocabularyPatch, VocabularyRequest
from reco_ray.serving.options import Limits
from reco_ray.serving.problems import Problem
from reco_ray.vocabulary import CONTEXT_CONCEPTS, Vocabulary, tidy
from reco_ray.vocabulary.chosen_images import Chosen

_Model = TypeVar("_Model", bound=BaseModel)
_OCTETS = ("application/octet-stream", "binary/octet-stream")  # the second is S3's default


class Options(BaseModel):
    """Options of a segmentation: query parameters, form fields or JSON fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: str | None = Field(
        default=None, min_length=1, max_length=63, description="name of a vocabulary or segmenter"
    )
    concepts: list[str] | None = Field(
        default=None, min_length=1, description="concepts to look for, instead of a vocabulary"
    )
    refine: Refinement | None = Field(
        default=None, description="sharpen edges; default: the server's setting"
    )
    background: bool | None = Field(
        default=None, description="label 0 for what shows no concept; default: as the vocabulary says"
    )
    threshold: float | None = Field(
        default=None, ge=0, le=1, allow_inf_nan=False, description="lower scores are background"
    )
    max_side: int | None = Field(
        default=None, ge=16, description="longest side of the answer, pixels; default: 1024 at most"
    )
    format: Literal["json", "png", "jpeg", "coco", "label-studio"] | None = Field(
        default=None, description="of the answer; default: as the Accept header says"
    )

    @field_validator("concepts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split_names(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _either(self) -> "Options":
        if (self.vocabulary is None) == (self.concepts is None):
            raise ValueError("name either a vocabulary or concepts")
        return self


async def read_request(request: Request, limits: Limits, *, batch: bool) -> tuple[list[Upload], Options]:
    """Reads a request for one image or, with `batch`, for several.

    An image is recognised by its first bytes, whatever its Content-Type.

    Raises:
        Problem: 400 malformed, 413 too large, 415 unsupported type, 422 invalid options or too many images.
    """
    declared = request.headers.get("content-type", "")
    kind = declared.partition(";")[0].strip().lower()
    fields: Fields = []
    if kind == MULTIPART and "boundary=" in declared.lower():
        uploads, fields = await read_multipart(request, limits, batch)
    elif is_image(body := await request.body()) and not batch:
        uploads = [Upload(body)]
    elif is_json(kind, body):
        uploads, fields = read_json_images(body, batch)
    elif kind == URLENCODED:
        uploads, fields = read_urlencoded(body, limits, batch)
    elif kind == MULTIPART:
        raise Problem(
            400, "multipart/form-data without a boundary: let your HTTP library write the Content-Type"
        )
    elif batch:
        raise Problem(415, "a batch is application/json or multipart/form-data")
    elif kind and (kind == SVG or not kind.startswith("image/")) and kind not in _OCTETS:
        raise Problem(
            415,
            "this Content-Type is no image: send image/jpeg or another image type, application/octet-stream, "
            "multipart/form-data or application/json",
        )
    else:
        uploads = [Upload(body)]
    if not uploads or uploads == [Upload(b"")]:
        raise Problem(400, "there is no image in the request")
    if len(uploads) > (limits.batch if batch else 1):
        raise Problem(422, f"{len(uploads)} images: at most {limits.batch if batch else 1} in one request")
    return uploads, _options(request, fields, limits)


def parse_vocabulary(fields: dict[str, Any], limits: Limits) -> tuple[Vocabulary, dict[str, bytes]]:
    """Parses the description of a vocabulary.

    Returns:
        The vocabulary, whose images are named by their ids, and the own examples that were sent, by id.

    Raises:
        Problem: 415 SVG, 422 unknown fields, names that are empty, repeated, too many or too long, or too many or
            unreadable images.
    """
    request = _validated(VocabularyRequest, fields)
    found: dict[str, bytes] = {}
    concepts: list[dict[str, Any]] = []
    for concept in request.concepts:
        if isinstance(concept, str):
            concepts.append({"name": concept})
        else:
            images = _chosen(concept, found, limits)
            concepts.append({"name": concept.name, "synonyms": concept.synonyms, **images})
    context = CONTEXT_CONCEPTS if request.context is None else tuple(request.context)
    described = {"concepts": concepts, "background": request.background, "context": context}
    vocabulary = _validated(Vocabulary, described, strict=False)
    if len(vocabulary.concepts) > limits.concepts:
        raise Problem(422, f"{len(vocabulary.concepts)} concepts: at most {limits.concepts}")
    words = [word for c in vocabulary.concepts for word in (c.name, *c.synonyms)] + list(vocabulary.context)
    if any(len(word) > limits.concept_length for word in words):
        raise Problem(422, f"a concept's name or synonym is longer than {limits.concept_length} characters")
    if len(words) > 4 * limits.concepts:
        raise Problem(422, f"{len(words)} names and synonyms: at most {4 * limits.concepts}")
    if any(not word.strip() or not word.isprintable() for word in words):
        raise Problem(422, "a concept's name or synonym is empty or holds control characters")
    return vocabulary, found


def parse_patch(fields: dict[str, Any], limits: Limits) -> tuple[dict[str, Chosen], dict[str, bytes]]:
    """Parses the images that are chosen for concepts of a vocabulary: by concept; and those that were sent, by id.

    Raises:
        Problem: as `parse_vocabulary`.
    """
    request = _validated(VocabularyPatch, fields)
    if len(request.concepts) > limits.concepts:
        raise Problem(422, f"{len(request.concepts)} concepts: at most {limits.concepts}")
    found: dict[str, bytes] = {}
    chosen = {}
    for name, images in request.concepts.items():
        chosen[tidy(name)] = _validated(Chosen, _chosen(images, found, limits), name, strict=False)
    return chosen, found


def _validated(kind: type[_Model], fields: dict[str, Any], place: str = "", *, strict: bool = True) -> _Model:
    try:
        return kind.model_validate(fields, strict=strict)
    except ValidationError as error:
        raise Problem(422, f"{place[:80]}: {explain(error)}" if place else explain(error)) from None


def _chosen(images: ConceptImages, found: dict[str, bytes], limits: Limits) -> dict[str, Any]:
    """The fields of `Chosen`; adds the images that were sent to `found`."""
    examples = []
    for number, example in enumerate(images.examples):
        name = example.image_id
        if (example.image is None) == (name is None):
            raise Problem(
                422, f"examples.{number}: give either an image, or the image_id of one that is known"
            )
        if name is None:
            data = image_bytes(example.image)
            if isinstance(data, Problem):
                raise data
            name = hashlib.sha256(data).hexdigest()
            try:
                decode_image(data, max_pixels=limits.pixels, short_side=16)
            except DecodeError as error:
                raise Problem(422, f"examples.{number}: {error}") from None
            found[name] = data
        examples.append({"image": name, "boxes": example.boxes, "points": example.points})
    pinned = [{"image": each.image_id, "boxes": each.boxes, "points": each.points} for each in images.pinned]
    return {
        "rejected": images.rejected,
        "pinned": pinned,
        "examples": examples,
        "only_chosen": images.only_chosen,
    }


def explain(error: ValidationError) -> str:
    """The first error of a validation, as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{place[:80]}: there is no such option"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place[:80]}: {message}" if place else message


def _options(request: Request, fields: Fields, limits: Limits) -> Options:
    given = merge_fields(request.query_params.multi_items())
    for name, value in merge_fields(fields).items():
        if name in given:
            raise Problem(422, f"{name[:80]}: given more than once")
        given[name] = value
    try:
        options = Options(**given)
    except ValidationError as error:
        raise Problem(422, explain(error)) from None
    if (options.max_side or 0) > limits.max_side:
        raise Problem(422, f"max_side: at most {limits.max_side}")
    return options
