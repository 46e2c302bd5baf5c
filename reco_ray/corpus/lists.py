"""Lists of images: text with one path or address a line, CSV and TSV with a column of them, JSON lines."""

import codecs
import csv
import io
import json
from collections.abc import Iterator

import pyarrow as pa

from reco_ray.corpus import web
from reco_ray.corpus.columns import NoImageColumn, find_column
from reco_ray.errors import UnreadableError, file_error, reason
from reco_ray.files import storage

_BYTE_ORDER_MARKS = (  # UTF-32's little-endian one begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_list(uri: str, image_column: str | None = None) -> Iterator[str]:
    """The URIs that a list names, in order; relative ones are taken from the folder that it lies in.

    In text, empty lines and comments are skipped: a line that begins with `#`, unless it names a file that is there.

    Args:
        image_column: of a CSV or of JSON lines, where the user names it.

    Raises:
        RecoError: it cannot be read, or no column of paths or addresses is found.
    """
    try:
        text = _decoded(storage.read_bytes(uri))
    except (OSError, UnicodeError) as error:
        raise file_error(f"{uri}: the list of images cannot be read: {reason(error)}", error) from error
    lower = uri.lower()
    if lower.endswith((".csv", ".tsv")):
        names = _cells(uri, text, lower.endswith(".tsv"), image_column)
    elif lower.endswith(".jsonl"):
        names = _records(uri, text, image_column)
    else:
        lines = map(str.strip, io.StringIO(text, newline=None))
        names = (line for line in lines if line and not _is_comment(uri, line))
    return (storage.beside(uri, name) for name in names)


def _decoded(data: bytes) -> str:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8-sig")
    return data.decode(encoding)


def _is_comment(uri: str, line: str) -> bool:
    if not line.startswith("#"):
        return False
    plain = line[1:2].strip(" \t#!") and "://" not in line and not web.is_web(uri)
    return not plain or not storage.exists(storage.beside(uri, line))


def _cells(uri: str, text: str, tabs: bool, named: str | None) -> Iterator[str]:
    """The column of a CSV: that which its header names, or the only one."""
    first = text[: text.find("\n") + 1 or len(text)]
    delimiter = "\t" if tabs else max(",;\t|", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        header = [cell.strip() for cell in next((row for row in rows if row), [])]
        place = 0
        try:
            place = _column(header, named)
        except NoImageColumn as error:
            if len(header) > 1 or named is not None:
                raise NoImageColumn(f"{uri}: {error}") from error
            yield from header  # of one column that has no header
        for row in rows:
            if len(header) == 1:  # then a comma belongs to the name
                row = [delimiter.join(row)]
            if len(row) > place and (cell := row[place].strip()):
                yield cell
    except csv.Error as error:
        raise UnreadableError(f"{uri}: line {rows.line_num}: not CSV: {error}") from error


def _records(uri: str, text: str, named: str | None) -> Iterator[str]:
    """One a line: a string, or an object in which a field is it."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if isinstance(record, dict):
                record = list(record.values())[_column(list(record), named)]
        except NoImageColumn as error:
            raise NoImageColumn(f"{uri}: line {number}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"{uri}: line {number}: not JSON: {error}") from error
        if not isinstance(record, str | None):
            shown = json.dumps(record)[:80]
            raise UnreadableError(f"{uri}: line {number}: {shown} is no path or address: expected text")
        if record:
            yield record


def _column(names: list[str], named: str | None) -> int:
    return names.index(find_column(pa.schema([(name, pa.string()) for name in names]), named).name)
