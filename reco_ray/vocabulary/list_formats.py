"""Parses the text of vocabulary files into fields of a `Vocabulary`.

Lines (`.txt` and all others), CSV, YAML and JSON; docs/vocabularies.md shows each of them.
"""

# ruff: noqa: RUF001 (full-width commas and typographic quotes are among what is read)

import csv
import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from reco_ray.errors import RecoError, UnreadableError, reason

SUFFIXES = (".txt", ".names", ".csv", ".tsv", ".yaml", ".yml", ".json")

Entry = dict[str, Any]  # fields of a Concept

_LIST_KEYS = (
    "names",
    "categories",
    "labels",
    "classes",
    "id2label",
    "label2id",
)  # of YOLO, COCO, CVAT, transformers
_NAME_KEYS = ("name", "label", "value", "class", "class_name", "category", "concept", "title", "display_name")
_ID_KEYS = ("id", "index", "class_id", "label_id", "category_id", "ids")
_OWN_KEYS = ("name", "synonyms", "alias", "rejected", "pinned", "examples", "only_chosen")
# Further keys in lists of other tools. Unknown keys are errors, such as "synonim".
_IGNORED = {
    *_ID_KEYS,
    "color",
    "supercategory",
    "attributes",
    "type",
    "isthing",
    "description",
    "hotkey",
    "keypoints",
}
_ABOUT = {"name", "description", "version"}  # of our own format
_NO_CONCEPTS = {"context", "background", "alias", "synonyms", "name", "path", "train", "val", "test", "nc"}

_SEPARATORS = ",;\t，、；"
_COLONS = ":："
_QUOTED = re.compile(
    rf"""\s*("(?P<a>[^"]*)"|'(?P<b>[^']*)'|“(?P<c>[^”]*)”|‘(?P<d>[^’]*)’|«(?P<e>[^»]*)»|`(?P<f>[^`]*)`)"""
    rf"\s*(?=[{_SEPARATORS}{_COLONS}]|$)"
)
_BULLET = re.compile(r"[-*+•·–—]\s+(\[[ xX]?\]\s+)?")
_ORDINAL = re.compile(r"\(?\d+[.)]\s+(?=\S)")
_NUMBER = re.compile(r"(\d+)(\s*[:=,;\t]\s*|\s+)(?=\S)")


def read_fields(text: str, suffix: str) -> dict[str, Any]:
    """Parses a vocabulary file: `concepts`, a list of fields of `Concept`, and other fields of a `Vocabulary`.

    Args:
        text: of the file.
        suffix: of the file's name, lower-case.

    Raises:
        UnreadableError: malformed; the message does not contain the file's name.
    """
    if suffix == ".json":
        return _structure(_json(text))
    if suffix in (".yaml", ".yml"):
        found = _yaml(text)
        return {"concepts": parse_lines(text)} if found and isinstance(found, str) else _structure(found)
    if suffix in (".csv", ".tsv") or _is_table(text):
        return {"concepts": _table(text)}
    if text.lstrip().startswith(("[", "{")):  # a Python or JSON list, whatever the suffix
        try:
            found = _yaml(text)
        except RecoError:
            found = None
        if found and not isinstance(found, str):
            return _structure(found)
    return {"concepts": parse_lines(text)}


# --- lines --------------------------------------------------------------------------------------------------


def parse_lines(text: str) -> list[Entry]:
    """Parses lines of one concept, several separated by commas, or `name: synonym, synonym`.

    `#` at the start of a line or after a space starts a comment. Bullets, line numbers and quotes are removed.
    """
    # "C# logo" has no comment.
    lines = [re.split(r"(?:^|\s)#", line)[0].strip() for line in text.splitlines()]
    lines = [_BULLET.sub("", line, count=1) if _BULLET.match(line) else line for line in lines if line]
    return [entry for line in _without_numbers(lines) for entry in _parse_line(line)]


def parse_names(text: str) -> list[Entry]:
    """Parses names separated by commas; colons have no meaning."""
    parts = (part for line in text.splitlines() for part, _ in _parts(line, _SEPARATORS))
    return [{"name": part} for part in parts if part]


def _without_numbers(lines: list[str]) -> list[str]:
    """Removes line numbers (`1. cat`, `2) dog`) and consecutive ids (`0: cat`, `1 dog`)."""
    if all(_ORDINAL.match(line) for line in lines):
        return [_ORDINAL.sub("", line, count=1) for line in lines]
    ids = [int(match[1]) for line in lines if (match := _NUMBER.match(line))]
    if len(ids) == len(lines) > 1 and ids == list(range(ids[0], ids[0] + len(ids))):
        return [_NUMBER.sub("", line, count=1) for line in lines]
    return lines


def _parse_line(line: str) -> list[Entry]:
    parts = list(_parts(line, _SEPARATORS + _COLONS))
    colon = next((n for n, (_, separator) in enumerate(parts) if separator and separator in _COLONS), None)
    names = [part for part, _ in (parts if colon is None else parts[: colon + 1]) if part]
    if colon is None:
        return [{"name": name} for name in names]
    if len(names) > 1:
        raise UnreadableError(
            f"{line!r}: a comma before the colon: one concept a line where words follow, name: word, word"
        )
    synonyms = "".join(
        part + separator if separator in _COLONS else f"{part}\t" for part, separator in parts[colon + 1 :]
    )
    return [{"name": "".join(names), "synonyms": [word for word in synonyms.split("\t") if word]}]


def _parts(line: str, separators: str) -> Iterable[tuple[str, str]]:
    """Yields the parts between separators outside quotes, each with the separator after it, "" at the end."""
    plain = re.compile(f"[^{separators}]*")
    position = 0
    while position < len(line):
        quoted = _QUOTED.match(line, position)
        match = quoted or plain.match(line, position)
        assert match is not None, "the plain pattern matches nothing, too"
        part = next(filter(None, quoted.groupdict().values()), "") if quoted else match[0]
        yield part.strip(), line[match.end() : match.end() + 1]
        position = match.end() + 1


# --- tables -------------------------------------------------------------------------------------------------


def _rows(text: str) -> list[list[str]]:
    """The cells of a CSV file with any separator, without comments, blank lines and trailing separators."""
    lines = [line.rstrip(" \t,;") for line in text.splitlines() if not line.lstrip().startswith("#")]
    separator = max(",;\t", key=next(filter(None, lines), "").count)
    try:
        cells = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        return [row for row in ([cell.strip() for cell in row] for row in cells) if any(row)]
    except csv.Error as error:
        raise UnreadableError(f"not valid CSV: {reason(error)}") from error


def _is_table(text: str) -> bool:
    """Whether the first line is a header with ids and names."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    header = {cell.strip().lower() for cell in re.split("[,;\t]", first)}
    return bool(header & set(_ID_KEYS)) and bool(header & set(_NAME_KEYS))


def _table(text: str) -> list[Entry]:
    """Parses a CSV file: a column of names, and optional columns of synonyms and of ids, which define the order."""
    rows = _rows(text)
    if not rows:
        return []
    header = [cell.lower() for cell in rows[0]]
    columns = [header.index(key) for key in _NAME_KEYS if key in header]
    names = [n for n in columns if not all(_cell(row, n).isdecimal() for row in rows[1:])] or columns
    if names:
        words = next((header.index(key) for key in ("synonyms", "words") if key in header), None)
        ids = next((header.index(key) for key in _ID_KEYS if key in header), None)
        rows = rows[1:]
    else:  # no header
        width = max(map(len, rows))
        numbers = [n for n in range(width) if all(_cell(row, n).isdecimal() for row in rows)]
        if len(rows) == 1 or width == 1:
            return [{"name": cell} for row in rows for cell in row if cell]
        if width != 2 or len(numbers) != 1:
            raise UnreadableError(
                f"no header names the column of the concepts: expected one of {', '.join(_NAME_KEYS)}"
            )
        names, ids, words = [1 - numbers[0]], numbers[0], None
    if ids is not None and all(_cell(row, ids).isdecimal() for row in rows):
        rows = sorted(rows, key=lambda row: int(_cell(row, ids)))
    entries = []
    for row in rows:
        synonyms = re.split("[,;|]", _cell(row, words)) if words is not None else []
        entries.append(
            {"name": _cell(row, names[0]), "synonyms": [word for word in synonyms if word.strip()]}
        )
    return [entry for entry in entries if entry["name"]]


def _cell(row: list[str], column: int) -> str:
    return row[column] if column < len(row) else ""


# --- YAML and JSON ------------------------------------------------------------------------------------------


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UnreadableError(f"not valid JSON: {reason(error)}") from error


def _yaml(text: str) -> Any:
    """Parses YAML with all scalars as strings: `no`, `7`, `null` and dates are valid names."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # builds strings, lists and dicts only
    except (yaml.YAMLError, RecursionError) as error:
        raise UnreadableError(f"not valid YAML: {reason(error)}") from error


def _structure(found: Any) -> dict[str, Any]:
    """Converts a list, our own format (`concepts`), other tools' formats (`_LIST_KEYS`), or a mapping."""
    if isinstance(found, list):
        return {"concepts": [_entry(value) for value in found]}
    if not isinstance(found, dict):
        raise UnreadableError("expected a list of concepts or a mapping with 'concepts'")
    ours = {key: found[key] for key in ("context", "background") if key in found}
    if "concepts" in found:
        others = {key: value for key, value in found.items() if key not in _ABOUT}
        return {**others, "concepts": _list_of(found["concepts"], "concepts")}
    for key in _LIST_KEYS:
        if key in found:
            return {**ours, "concepts": _list_of(found[key], key)}
    return {"concepts": _mapping(found)}


def _list_of(value: Any, key: str) -> list[Entry]:
    if isinstance(value, str) and len(entries := parse_names(value)) > 1:
        return entries
    if isinstance(value, dict):
        return _mapping(value)
    if not isinstance(value, list):
        raise UnreadableError(f"{key}: expected a list, one entry a concept")
    if key != "concepts" and all(isinstance(one, dict) for one in value):
        ids = [next((str(one[k]) for k in _ID_KEYS if k in one), "") for one in value]
        if all(number.isdecimal() for number in ids):
            value = [
                one for _, one in sorted(zip(map(int, ids), value, strict=True), key=lambda pair: pair[0])
            ]
    return [_entry(one, strict=key == "concepts") for one in value]


def _mapping(found: dict[Any, Any]) -> list[Entry]:
    """Converts {id: name}, {name: id} or {name: synonyms}."""
    if found and all(str(key).isdecimal() for key in found):
        return [_entry(found[key]) for key in sorted(found, key=lambda key: int(str(key)))]
    if found and all(isinstance(v, str | int) and str(v).isdecimal() for v in found.values()):
        return [{"name": str(key)} for key in sorted(found, key=lambda key: int(found[key]))]
    is_list = len(found) == 1 and isinstance(next(iter(found.values())), list)
    words = all(v is None or isinstance(v, str) or _is_words(v) for v in found.values())
    if not found or is_list or not words or set(found) & _NO_CONCEPTS:
        there = ", ".join(map(str, list(found)[:5])) or "nothing"
        raise UnreadableError(f"expected a list of concepts or a mapping with 'concepts', found {there}")
    return [{"name": str(name), "synonyms": _words(words)} for name, words in found.items()]


def _entry(value: Any, strict: bool = True) -> Entry:
    """Converts one entry of a list.

    Args:
        value: the entry.
        strict: keep unknown keys, which `Concept` then rejects.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"name": str(value)}
    if not isinstance(value, dict):
        return {"name": value}
    key = next((key for key in _NAME_KEYS if key in value), None)
    if (
        key is None and len(value) == 1 and not set(value) & {*_OWN_KEYS, *_IGNORED}
    ):  # `- sofa: couch, settee`
        ((name, words),) = value.items()
        return {"name": str(name), "synonyms": _words(words)}
    kept = {k: v for k, v in value.items() if k in _OWN_KEYS or (strict and k not in _IGNORED and k != key)}
    if key is not None:
        kept["name"] = str(value[key]) if isinstance(value[key], int | float) else value[key]
    if "synonyms" in kept:
        kept["synonyms"] = _words(kept["synonyms"])
    if kept.get("alias") in ("", "null", "~"):  # null in YAML
        kept["alias"] = None
    return kept


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _words(value: Any) -> Any:
    if value is None:
        return []
    return [entry["name"] for entry in parse_names(value)] if isinstance(value, str) else value
