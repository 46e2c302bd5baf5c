"""Concepts and vocabularies: what to look for, in whose words, and what tends to stand around it."""

import json
import re
import unicodedata
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from reco_ray import storage
from reco_ray.errors import RecoError, reason

# Built first, in this order, each with those before it as its own context (ReCo, section 3.3).
CONTEXT_CONCEPTS = ("tree", "sky", "building", "road", "person")
MAX_NAME_LENGTH = 100


class Concept(BaseModel):
    """One thing to segment.

    name: shown in legends and reports, any script. synonyms: what the language model reads instead of it,
    several are averaged. alias: a context concept whose reference this one shares (vegetation -> tree).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH)
    synonyms: tuple[str, ...] = ()
    alias: str | None = None

    @field_validator("name", "synonyms", mode="before")
    @classmethod
    def _tidy(cls, value: Any) -> Any:
        """One spelling of every word: composed characters, single spaces."""
        if isinstance(value, list | tuple):
            return [cls._tidy(part) for part in value]
        return unicodedata.normalize("NFC", " ".join(value.split())) if isinstance(value, str) else value

    @property
    def words(self) -> tuple[str, ...]:
        """What is embedded: the synonyms, or the name itself."""
        return self.synonyms or (self.name,)


class Vocabulary(BaseModel):
    """The concepts of one segmenter, in the order of its label ids, and their context concepts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concepts: tuple[Concept, ...]
    context: tuple[str, ...] = CONTEXT_CONCEPTS
    background: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Vocabulary":
        if not self.concepts:
            raise ValueError("the concept list is empty: name at least one concept")
        if len(self.concepts) > 65_535:
            raise ValueError(f"{len(self.concepts)} concepts: label maps hold at most 65,535")
        seen: dict[str, str] = {}
        for concept in self.concepts:
            key = concept.name.casefold()
            if key in seen:
                raise ValueError(f"concept {concept.name!r} is named twice: remove one")
            seen[key] = concept.name
            if concept.alias is not None and concept.alias not in self.context:
                raise ValueError(
                    f"concept {concept.name!r}: alias {concept.alias!r} is no context concept "
                    f"({', '.join(self.context)})"
                )
        return self

    @property
    def names(self) -> list[str]:
        return [concept.name for concept in self.concepts]

    def context_of(self, concept: Concept) -> str | None:
        """The context concept whose reference `concept` reuses: itself by name, or its alias."""
        return concept.alias or (concept.name if concept.name in self.context else None)


def parse_concepts(text: str) -> Vocabulary:
    """ "cat, dog" from a command line -> a vocabulary.

    Raises:
        RecoError: empty list, duplicates, over-long names.
    """
    return _build({"concepts": [{"name": part} for part in text.split(",") if part.strip()]}, "--concepts")


def load_vocabulary(uri: str) -> Vocabulary:
    """Reads a vocabulary file.

    A `.txt` file has one concept a line, `name` or `name: synonym, synonym`; `#` starts a comment. A `.yaml`
    or `.json` file has the fields of `Vocabulary`, where a concept may also be a bare string.

    Raises:
        RecoError: the file is missing or malformed; names the line or field.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecoError(f"{uri}: not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise RecoError(f"{uri}: the vocabulary cannot be read: {reason(error)}") from error
    if uri.endswith((".yaml", ".yml", ".json")):
        try:
            fields = json.loads(text) if uri.endswith(".json") else yaml.safe_load(text)
        except (yaml.YAMLError, json.JSONDecodeError) as error:
            kind = "JSON" if uri.endswith(".json") else "YAML"
            raise RecoError(f"{uri}: not valid {kind}: {reason(error)}") from error
        if isinstance(fields, list):
            fields = {"concepts": fields}
        if not isinstance(fields, dict):
            raise RecoError(f"{uri}: expected a list of concepts or a mapping with 'concepts'")
        entries = fields.get("concepts") or []
        if not isinstance(entries, list):
            raise RecoError(f"{uri}: concepts: expected a list, one entry a concept")
        return _build(
            {**fields, "concepts": [{"name": e} if isinstance(e, str) else e for e in entries]}, uri
        )
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return _build({"concepts": [_parse_line(line) for line in lines if line]}, uri)


def slug(index: int, name: str) -> str:
    """A file name for a concept: its id, and what is left of its name in lower-case ASCII, at most 100 characters."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")[:MAX_NAME_LENGTH]
    return f"{index:03d}-{plain}".rstrip("-")


def _parse_line(line: str) -> dict[str, Any]:
    name, _, synonyms = line.partition(":")
    return {"name": name, "synonyms": [part for part in synonyms.split(",") if part.strip()]}


def _build(fields: dict[str, Any], source: str) -> Vocabulary:
    try:
        return Vocabulary(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise RecoError(f"{source}: {place + ': ' if place else ''}{message}") from error
