"""JSON files that are put together from lines, without being in memory."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def dump(value: Any) -> str:
    """JSON in one line, with names in their own script."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def with_ids(lines: Iterable[str]) -> Iterator[str]:
    """JSON objects with an `id` before their other fields, counted from 1."""
    for number, line in enumerate(lines, 1):
        yield f'{{"id":{number},{line[1:]}'


def json_object(fields: Mapping[str, Any], arrays: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """The text of an object.

    Args:
        fields: names and values.
        arrays: further names, and the elements of their arrays as JSON.
    """
    yield "{"
    for number, (name, value) in enumerate(fields.items()):
        yield f"{',' if number else ''}\n{dump(name)}:{dump(value)}"
    for number, (name, elements) in enumerate(arrays.items()):
        yield f"{',' if fields or number else ''}\n{dump(name)}:["
        for place, element in enumerate(elements):
            yield f",\n{element}" if place else f"\n{element}"
        yield "\n]"
    yield "\n}\n"
