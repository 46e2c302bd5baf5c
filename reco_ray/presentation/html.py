"""Self-contained HTML pages, with embedded style and images."""

import base64
import io
from importlib.resources import files

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

_ENVIRONMENT = Environment(loader=PackageLoader("reco_ray"), autoescape=True)


def render_page(template: str, **values: object) -> bytes:
    """Renders a page from `templates/`, UTF-8."""
    return _ENVIRONMENT.get_template(template).render(**values).encode()


def css_colour(rgb: np.ndarray) -> str:
    """uint8 (3,) -> "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*rgb.tolist())


def jpeg_uri(image: Image.Image) -> str:
    """An image as a data URI, JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue())


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    """Bytes of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def shared_file(name: str) -> bytes:
    """A file of `presentation/static/`, which reports and the page of the server have in common."""
    return (files("reco_ray.presentation") / "static" / name).read_bytes()
