"""Parses request bodies into images and fields: multipart, urlencoded and JSON."""

import contextlib
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import UploadFile
from starlette.requests import Request

from reco_ray.corpus.decode import is_image
from reco_ray.serving.base64_images import NO_SVG, SVG, image_bytes
from reco_ray.serving.options import Limits
from reco_ray.serving.problems import Problem

MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
_DEFAULT_KINDS = (
    "",
    URLENCODED,
    "text/plain",
    "text/json",
)  # default types of HTTP clients, whatever the body is
_IMAGE_FIELDS = ("image", "images", "file", "files")
_INDEX = re.compile(r"\[\d*\]$")  # what form libraries append to the name of a list
_FORM_FIELDS = 16  # besides concepts

Fields = list[tuple[str, Any]]


@dataclass(frozen=True)
class Upload:
    """data: the encoded image, or the reason it cannot be used. id: the client's name of the image in a batch."""

    data: bytes | Problem
    id: str | None = None


def is_json(kind: str, body: bytes) -> bool:
    """Whether a body is JSON: by its type, or because it starts an object under a client's default type."""
    if kind == "application/json" or kind.endswith("+json"):
        return True
    return kind in _DEFAULT_KINDS and body[:64].lstrip().startswith(b"{")


def merge_fields(fields: Fields) -> dict[str, Any]:
    """Fields by name; those that name concepts may be repeated, as `concepts`, `concepts[]` or `concepts[0]`."""
    found: dict[str, Any] = {}
    for given, value in fields:
        name = _INDEX.sub("", given)
        if name != "concepts":
            name = given
        elif isinstance(value, str):
            value = split_names(value)
        if name == "concepts" and isinstance(value, list) and isinstance(found.get(name), list):
            found[name] += value
        elif name in found:
            raise Problem(422, f"{name[:80]}: given more than once")
        else:
            found[name] = value
    return found


def split_names(text: str) -> list[Any]:
    """Names separated by commas or lines, or a JSON list of them."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return list(json.loads(text))
    return [name for name in re.split(r"[,\r\n]", text) if name.strip()]


async def read_multipart(request: Request, limits: Limits, batch: bool) -> tuple[list[Upload], Fields]:
    """Reads the images (files or text) and the other fields of a form.

    Raises:
        Problem: 400 malformed, 415 SVG, 422 a file in another field or an invalid image.
    """
    uploads: list[Upload] = []
    fields: Fields = []
    async with request.form(
        max_files=limits.batch + 1, max_fields=_FORM_FIELDS + limits.concepts, max_part_size=limits.bytes
    ) as form:
        for key, value in form.multi_items():
            if not isinstance(value, UploadFile):
                _add_text_field(key, value, uploads, fields, batch)
            elif _INDEX.sub("", key) not in _IMAGE_FIELDS:
                raise Problem(422, f"{key[:80]}: images come in the field {'images' if batch else 'image'!r}")
            else:
                data = await value.read()
                if (value.content_type or "").lower().startswith(SVG) and not is_image(data):
                    raise Problem(415, NO_SVG)
                uploads.append(Upload(data, str(len(uploads)) if batch else None))
    return uploads, fields


def read_urlencoded(body: bytes, limits: Limits, batch: bool) -> tuple[list[Upload], Fields]:
    """Reads a form without files: images are base64, data URLs or percent-encoded bytes.

    Raises:
        Problem: 400 too many fields, 415 SVG, 422 an invalid image.
    """
    uploads: list[Upload] = []
    fields: Fields = []
    try:
        # Latin-1 keeps every byte: some clients send raw image bytes.
        pairs = parse_qsl(
            body.decode("latin-1"),
            keep_blank_values=True,
            encoding="latin-1",
            max_num_fields=_FORM_FIELDS + limits.concepts,
        )
    except ValueError:
        raise Problem(400, "the form has too many fields") from None
    for key, value in pairs:
        if _INDEX.sub("", key) in _IMAGE_FIELDS:
            # An unescaped + in base64 is decoded as a space.
            plus = value.replace(" ", "+")
            found = b"" if plus == value else image_bytes(plus)
            text = plus if isinstance(found, bytes) and is_image(found) else value
            _add_text_field(key, text, uploads, fields, batch)
        else:
            fields.append((_utf8(key), _utf8(value)))
    return uploads, fields


def _add_text_field(key: str, value: str, uploads: list[Upload], fields: Fields, batch: bool) -> None:
    """Adds a text field to `uploads` if it is an image, else to `fields`."""
    if _INDEX.sub("", key) not in _IMAGE_FIELDS:
        fields.append((key, value))
        return
    data: bytes | Problem = b""
    with contextlib.suppress(UnicodeEncodeError):
        data = value.encode("latin-1")  # the form parser falls back to Latin-1 for bytes that are not UTF-8
    if not (isinstance(data, bytes) and is_image(data)):
        data = image_bytes(value)
    if isinstance(data, Problem) and not batch:
        raise data
    uploads.append(Upload(data, str(len(uploads)) if batch else None))


def _utf8(text: str) -> str:
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError:
        return text


def read_json_images(body: bytes, batch: bool) -> tuple[list[Upload], Fields]:
    """Reads the images and the other fields of a JSON object. An invalid image of a batch becomes a Problem.

    Raises:
        Problem: 400 malformed or without images, 415 SVG, 422 invalid values.
    """
    fields = read_json(body)
    if not batch:
        image = fields.pop("image", None)
        if image is None:
            raise Problem(400, "image: missing, expected the image in base64")
        data = image_bytes(image)
        if isinstance(data, Problem):
            raise data
        return [Upload(data)], list(fields.items())
    images = fields.pop("images", None)
    if not isinstance(images, list):
        raise Problem(400, "images: expected a list of images in base64, or of {id, image}")
    uploads = []
    for number, entry in enumerate(images):
        own = entry if isinstance(entry, dict) else {"image": entry}
        if not set(own) <= {"id", "image"} or not isinstance(own.get("id", ""), str):
            raise Problem(422, f"images.{number}: expected base64, or {{id, image}} with a text as id")
        uploads.append(Upload(image_bytes(own.get("image")), own.get("id", str(number))[:200]))
    return uploads, list(fields.items())


def read_json(body: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        Problem: 400, not valid JSON, not an object, or a repeated name.
    """
    try:
        fields = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise Problem(400, "the body must be a JSON object")
    return fields


def _object(pairs: Fields) -> dict[str, Any]:
    """Rejects repeated names, of which `json` would keep only the last value."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Problem(400, f"{name[:80]}: given more than once")
        found[name] = value
    return found
