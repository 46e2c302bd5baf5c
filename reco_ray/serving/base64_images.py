"""Decodes images sent as text: base64 in its variants, and data URLs."""

import base64
import binascii
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from reco_ray.corpus.decode import is_image
from reco_ray.serving.problems import Problem

SVG = "image/svg+xml"
NO_SVG = "an SVG document is no photograph"
_DATA_URL = re.compile(r"\s*data:([^,]*),", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*(https?|ftp|s3|gs|file):", re.IGNORECASE)


def image_bytes(text: Any) -> bytes | Problem:
    """The encoded image in a text, or the reason that there is none.

    Args:
        text: base64 in the standard or URL-safe alphabet, with or without line breaks and padding; or a data URL, in
            base64 or percent-encoded.
    """
    if not isinstance(text, str) or not text.strip():
        return Problem(422, "image: expected the image in base64, or as a data URL")
    if address := _ADDRESS.match(text):
        return Problem(422, f"image: no {address[1].lower()} address is fetched: send the image itself")
    url = _DATA_URL.match(text)
    if url is None:
        return _decode_base64(text)
    kind, *parameters = (part.strip().lower() for part in url[1].split(";"))
    rest = text[url.end() :]
    data = _decode_base64(rest) if "base64" in parameters else unquote_to_bytes(rest)
    if kind == SVG and not (isinstance(data, bytes) and is_image(data)):
        return Problem(415, NO_SVG)
    return data or Problem(422, "image: the data URL is empty")


def _decode_base64(text: str) -> bytes | Problem:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error is one
        pass
    if "%" in text:
        text = unquote_to_bytes(text).decode("latin-1")
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return Problem(422, "image: not valid base64")
