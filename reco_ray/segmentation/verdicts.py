"""Verdicts of a person on masks: a table of good, bad and unsure, as the page of `review` writes it."""

import csv
import io
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from reco_ray.errors import MissingError, UnreadableError, file_error, reason
from reco_ray.files import storage

Judgement = Literal["good", "bad", "unsure"]
Sample = Literal["random", "unsure"]
COLUMNS = ("uri", "concept", "verdict", "sample")  # others are for the reader
_MOST_BYTES = 100_000_000


@dataclass(frozen=True)
class Verdict:
    """What a person says of the mask of a concept in an image.

    Attributes:
        uri: of the image.
        concept: its name.
        verdict: good, bad or unsure.
        sample: "random" if the mask was drawn at random, "unsure" if it was chosen because the model is unsure of it.
    """

    uri: str
    concept: str
    verdict: Judgement
    sample: Sample


def read_verdicts(file: str) -> list[Verdict]:
    """Reads a CSV or Parquet file; of several verdicts on one mask the last is kept.

    Raises:
        RecoError: it cannot be read, or lacks a column, or a row has another value.
    """
    try:
        size = storage.file_size(file)
        if size is not None and size > _MOST_BYTES:
            raise UnreadableError(f"{file}: {size:,} bytes are too many for verdicts")
        data = storage.read_bytes(file)
    except FileNotFoundError as error:
        raise MissingError(
            f"{file}: no such file: the page of `reco-ray review` saves the verdicts that are given on it"
        ) from error
    except OSError as error:
        raise file_error(f"{file}: the verdicts cannot be read: {reason(error)}", error) from error
    rows = _parquet(file, data) if data.startswith(b"PAR1") else _csv(file, data)
    found: dict[tuple[str, str], Verdict] = {}
    for number, row in rows:
        verdict = _verdict(f"{file}: {number}", row)
        found[verdict.uri, verdict.concept] = verdict
    if not found:
        raise UnreadableError(f"{file}: has no verdicts")
    return list(found.values())


def _csv(file: str, data: bytes) -> list[tuple[str, dict[str, str]]]:
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        _require_columns(file, reader.fieldnames or [])
        return [(f"line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableError(f"{file}: neither CSV in UTF-8 nor Parquet: {reason(error)}") from error


def _parquet(file: str, data: bytes) -> list[tuple[str, dict[str, str]]]:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (OSError, pa.ArrowInvalid) as error:
        raise UnreadableError(f"{file}: damaged: {reason(error)}") from error
    _require_columns(file, table.column_names)
    return [(f"row {n}", row) for n, row in enumerate(table.select(COLUMNS).to_pylist(), start=1)]


def _require_columns(file: str, names: object) -> None:
    missing = [name for name in COLUMNS if name not in list(names)]  # type: ignore[call-overload]
    if missing:
        raise UnreadableError(f"{file}: lacks the column {missing[0]}: expected {', '.join(COLUMNS)}")


def _verdict(place: str, row: dict[str, str]) -> Verdict:
    for name, known in (("verdict", get_args(Judgement)), ("sample", get_args(Sample))):
        if row[name] not in known:
            raise UnreadableError(f"{place}: {name} {row[name]!r}: expected {', '.join(known)}")
    for name in ("uri", "concept"):
        if not row[name]:
            raise UnreadableError(f"{place}: {name} is empty")
    return Verdict(row["uri"], row["concept"], row["verdict"], row["sample"])  # type: ignore[arg-type]


def bad_images(verdicts: list[Verdict]) -> list[str]:
    """URIs of the images of which a mask was judged bad, sorted."""
    return sorted({each.uri for each in verdicts if each.verdict == "bad"})
