"""Which column of a table holds its images, or says where they are."""

import re
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from reco_ray.errors import UnreadableError

# In order of preference. Case, underscores and spaces do not matter: "Image URL" is `image_url`.
IMAGE_COLUMNS = (
    *("image", "bytes", "image_bytes", "img", "img_bytes", "image_data", "jpg", "jpeg", "png", "webp"),
    *("content", "photo", "picture", "data"),
)
URI_COLUMNS = (
    *("uri", "url", "image_url", "image_uri", "img_url", "path", "image_path", "img_path"),
    *("file_name", "filename", "file_path", "filepath", "file", "image_file", "image_name"),
)
_NAMED_IMAGES = ("image", "img", "photo", "picture")  # which as text are paths or addresses
_MOST_NAMED = 30  # columns in a message


class NoImageColumn(UnreadableError):
    """A table in which no column holds or names images."""


@dataclass(frozen=True)
class Column:
    """A column of images.

    holds: "bytes", encoded images; "struct", Hugging Face's {bytes, path}, of which either may be null; "uri", paths
    or addresses.
    """

    name: str
    holds: Literal["bytes", "struct", "uri"]


def find_column(schema: pa.Schema, named: str | None = None) -> Column:
    """The column of images.

    The first that has a known name and a fitting type; encoded images are preferred to addresses. Where no name is
    known, the only column of {bytes, path}, or the only binary one.

    Args:
        named: the column that the user names, instead.

    Raises:
        NoImageColumn: there is none, or several among which only the user can choose; lists the columns.
    """
    kinds = {field.name: _kind(field.type) for field in schema}
    if named is not None:
        return _named(schema, kinds, named)
    images = [name for name in schema.names if kinds[name] in ("bytes", "struct")]
    texts = [name for name in schema.names if kinds[name] == "text"]
    if found := _first_known(images, IMAGE_COLUMNS):
        return Column(found, "struct" if kinds[found] == "struct" else "bytes")
    # Some writers store text as binary.
    if found := _first_known([*texts, *images], URI_COLUMNS) or _first_known(texts, _NAMED_IMAGES):
        return Column(found, "struct" if kinds[found] == "struct" else "uri")
    structs = [name for name in images if kinds[name] == "struct"]
    binary = [
        name for name in images if not pa.types.is_fixed_size_binary(_value_type(schema.field(name).type))
    ]
    if len(structs) == 1:
        return Column(structs[0], "struct")
    if len(binary) == 1:
        return Column(binary[0], "bytes")
    raise NoImageColumn(
        f"no column of images: it has {_listed(schema)}; --image-column NAME (or --set image_column=NAME) says which "
        "one holds encoded images, paths or addresses, one a row"
    )


def _named(schema: pa.Schema, kinds: dict[str, str], named: str) -> Column:
    found = named if named in kinds else _first_known(schema.names, (named,))
    if found is None:
        raise NoImageColumn(f"there is no column {named!r}: it has {_listed(schema)}")
    kind = kinds[found]
    if kind == "text" or (kind == "bytes" and _first_known([found], URI_COLUMNS)):
        return Column(found, "uri")
    if kind == "bytes":
        return Column(found, "bytes")
    if kind == "struct":
        return Column(found, "struct")
    raise NoImageColumn(
        f"column {found!r} is of type {_short(schema.field(found).type)}: expected encoded images, {{bytes, path}}, "
        "paths or addresses, one a row"
    )


def _first_known(names: list[str], known: tuple[str, ...]) -> str | None:
    plain = {_letters(name): name for name in reversed(names)}
    plain |= {name: name for name in names if name in known}
    return next((plain[_letters(name)] for name in known if _letters(name) in plain), None)


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without dictionaries and extensions."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def _kind(kind: pa.DataType) -> str:
    kind = _value_type(kind)
    types = pa.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    ):
        return "bytes"
    if types.is_struct(kind):
        inside = {field.name: _kind(field.type) for field in kind}
        if inside.get("bytes") == "bytes" or inside.get("path") == "text":
            return "struct"
    return "other"


def _listed(schema: pa.Schema) -> str:
    shown = [f"{field.name} ({_short(field.type)})" for field in list(schema)[:_MOST_NAMED]]
    more = [f"{len(schema) - _MOST_NAMED} more"] if len(schema) > _MOST_NAMED else []
    return ", ".join([*shown, *more]) or "no columns"


def _short(kind: pa.DataType) -> str:
    text = " ".join(str(kind).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
