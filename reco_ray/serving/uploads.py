"""Requests -> images and options, in the three forms that clients send: multipart, a raw body, JSON with base64."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.datastructures import UploadFile
from starlette.requests import Request

from reco_ray.config import Refinement
from reco_ray.serving.options import Limits
from reco_ray.serving.problems import Problem
from reco_ray.vocabulary import Vocabulary

# SVG and PDF are documents, not photographs; everything else is decided by what the bytes are.
_NOT_PHOTOGRAPHS = ("image/svg+xml",)
_FORM_FIELDS = 16


class Options(BaseModel):
    """How to segment; query parameters, form fields or fields of the JSON."""

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

    @field_validator("concepts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _either(self) -> "Options":
        if (self.vocabulary is None) == (self.concepts is None):
            raise ValueError("name either a vocabulary or concepts")
        return self


@dataclass(frozen=True)
class Upload:
    """id: what the client calls the image, in a batch. data: the encoded image, or why there is none."""

    data: bytes | Problem
    id: str | None = None


async def read_request(request: Request, limits: Limits, *, batch: bool) -> tuple[list[Upload], Options]:
    """Reads a request for one image or, with `batch`, for several.

    Raises:
        Problem: 400 malformed, 413 too large, 415 another type, 422 options or counts that cannot be.
    """
    kind, _, _ = request.headers.get("content-type", "application/octet-stream").partition(";")
    kind = kind.strip().lower()
    fields: dict[str, Any] = {}
    if kind == "multipart/form-data":
        uploads, fields = await _read_form(request, limits, batch)
    elif kind == "application/json":
        uploads, fields = _read_json(await request.body(), batch)
    elif batch:
        raise Problem(415, "a batch is application/json or multipart/form-data")
    elif kind in _NOT_PHOTOGRAPHS or not (kind.startswith("image/") or kind == "application/octet-stream"):
        raise Problem(
            415,
            "this Content-Type is no image: send image/jpeg or another image type, application/octet-stream, "
            "multipart/form-data or application/json",
        )
    else:
        uploads = [Upload(await request.body())]
    if not uploads or uploads == [Upload(b"")]:
        raise Problem(400, "there is no image in the request")
    if len(uploads) > (limits.batch if batch else 1):
        raise Problem(422, f"{len(uploads)} images: at most {limits.batch if batch else 1} in one request")
    return uploads, _options(request, fields, limits)


def parse_vocabulary(fields: dict[str, Any], limits: Limits) -> Vocabulary:
    """Concepts as clients name them -> a vocabulary.

    Raises:
        Problem: 422, empty or repeated names, too many, too long.
    """
    try:
        vocabulary = Vocabulary(**fields)
    except ValidationError as error:
        raise Problem(422, explain(error)) from None
    if len(vocabulary.concepts) > limits.concepts:
        raise Problem(422, f"{len(vocabulary.concepts)} concepts: at most {limits.concepts}")
    words = [word for c in vocabulary.concepts for word in (c.name, *c.synonyms)] + list(vocabulary.context)
    if any(len(word) > limits.concept_length for word in words):
        raise Problem(422, f"a concept's name or synonym is longer than {limits.concept_length} characters")
    if len(words) > 4 * limits.concepts:
        raise Problem(422, f"{len(words)} names and synonyms: at most {4 * limits.concepts}")
    if any(not word.strip() or not word.isprintable() for word in words):
        raise Problem(422, "a concept's name or synonym is empty or holds control characters")
    return vocabulary


def explain(error: ValidationError) -> str:
    """A validation's first error as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{place[:80]}: there is no such option"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place[:80]}: {message}" if place else message


def _options(request: Request, fields: dict[str, Any], limits: Limits) -> Options:
    given = list(request.query_params.multi_items()) + list(fields.items())
    names = [name for name, _ in given]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise Problem(422, f"{repeated[:80]}: given more than once")
    try:
        options = Options(**dict(given))
    except ValidationError as error:
        raise Problem(422, explain(error)) from None
    if (options.max_side or 0) > limits.max_side:
        raise Problem(422, f"max_side: at most {limits.max_side}")
    return options


async def _read_form(request: Request, limits: Limits, batch: bool) -> tuple[list[Upload], dict[str, Any]]:
    name = "images" if batch else "image"
    uploads: list[Upload] = []
    fields: dict[str, Any] = {}
    async with request.form(
        max_files=limits.batch + 1, max_fields=_FORM_FIELDS, max_part_size=1_000_000
    ) as form:
        for key, value in form.multi_items():
            if not isinstance(value, UploadFile):
                if key in fields:
                    raise Problem(422, f"{key[:80]}: given more than once")
                fields[key] = value
            elif key != name:
                raise Problem(422, f"{key[:80]}: images come in the field {name!r}")
            elif (value.content_type or "").lower() in _NOT_PHOTOGRAPHS:
                raise Problem(415, "an SVG document is no photograph")
            else:
                uploads.append(Upload(await value.read(), str(len(uploads)) if batch else None))
    if name in fields:
        raise Problem(422, f"{name}: must be a file, not text")
    return uploads, fields


def _read_json(body: bytes, batch: bool) -> tuple[list[Upload], dict[str, Any]]:
    fields = read_json(body)
    if not batch:
        image = fields.pop("image", None)
        if image is None:
            raise Problem(400, "image: missing, expected the image in base64")
        data = _decode(image)
        if isinstance(data, Problem):
            raise data
        return [Upload(data)], fields
    images = fields.pop("images", None)
    if not isinstance(images, list):
        raise Problem(400, "images: expected a list of images in base64, or of {id, image}")
    uploads = []
    for number, entry in enumerate(images):
        own = entry if isinstance(entry, dict) else {"image": entry}
        if not set(own) <= {"id", "image"} or not isinstance(own.get("id", ""), str):
            raise Problem(422, f"images.{number}: expected base64, or {{id, image}} with a text as id")
        uploads.append(Upload(_decode(own.get("image")), own.get("id", str(number))[:200]))
    return uploads, fields


def read_json(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Problem: 400.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise Problem(400, "the body must be a JSON object")
    return fields


def _decode(text: Any) -> bytes | Problem:
    if not isinstance(text, str) or not text:
        return Problem(422, "image: expected the image in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return Problem(422, "image: not valid base64")
