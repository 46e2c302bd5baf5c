"""Concepts and vocabularies: names, synonyms and context concepts."""

import codecs
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from reco_ray.errors import RecoError, SettingError, UnreadableError, file_error, reason
from reco_ray.files import storage
from reco_ray.vocabulary.chosen_images import CHOICES, Chosen, images_beside
from reco_ray.vocabulary.list_formats import SUFFIXES, parse_names, read_fields

# Built first, in this order, each with those before it as its own context (ReCo, section 3.3).
CONTEXT_CONCEPTS = ("tree", "sky", "building", "road", "person")
MAX_NAME_LENGTH = 100
_NO_WIDTH = dict.fromkeys((0x200B, 0x2060, 0xFEFF))  # left by copying from web pages
MAX_BYTES = 1 << 26  # of a file: COCO's annotations of 5,000 images are 20 MB
_SHOWN, _SHOWN_WORDS = 10, 3  # concepts, and synonyms of each, in a line


class Concept(Chosen):
    """One concept to segment, with the images that a person chose for it.

    name: shown in legends and reports, any script.
    synonyms: embedded instead of the name; the embeddings of several are averaged.
    alias: a context concept whose reference this one reuses (vegetation -> tree).
    """

    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH)
    synonyms: tuple[str, ...] = ()
    alias: str | None = None

    @field_validator("name", "synonyms", mode="before")
    @classmethod
    def _tidy(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [cls._tidy(part) for part in value]
        return tidy(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_chosen(self) -> "Concept":
        if self.alias is not None and self.chosen:
            raise ValueError(
                f"concept {self.name!r}: uses the reference of {self.alias!r}: choose images for that"
            )
        if self.rejected and not self.words:
            raise ValueError(
                f"concept {self.name!r}: has no words, so nothing is retrieved that could be rejected"
            )
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """The texts that are embedded: the synonyms, or the name. None for a concept that has only examples."""
        return self.synonyms or (() if self.examples else (self.name,))

    def with_chosen(self, chosen: Chosen) -> "Concept":
        """This concept, with these images in place of its own; it keeps its words.

        Raises:
            ValueError: the images do not fit the concept.
        """
        if not self.words and not chosen.examples:
            raise ValueError(f"concept {self.name!r}: has no words, so it needs an example")
        images = {kind: getattr(chosen, kind) for kind in CHOICES}
        # Of a concept without synonyms that has examples, the name is no longer read.
        synonyms = self.words if chosen.examples else self.synonyms
        return Concept(
            name=self.name,
            synonyms=synonyms,
            alias=self.alias,
            only_chosen=chosen.only_chosen,
            **images,
        )

    def without_chosen(self) -> "Concept":
        """This concept without images, to compare names and words."""
        synonyms = () if self.words == (self.name,) else self.words
        return Concept(name=self.name, synonyms=synonyms, alias=self.alias)


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

    @property
    def chosen(self) -> bool:
        """Whether a person chose images for any concept."""
        return any(concept.chosen for concept in self.concepts)

    def without_chosen(self) -> "Vocabulary":
        """The vocabulary without chosen images, to compare names and words."""
        return self.with_concepts(concept.without_chosen() for concept in self.concepts)

    def with_concepts(self, concepts: Iterable[Concept]) -> "Vocabulary":
        """The vocabulary with other concepts."""
        return Vocabulary(concepts=tuple(concepts), context=self.context, background=self.background)

    def context_of(self, concept: Concept) -> str | None:
        """The context concept whose reference `concept` reuses: itself by name, or its alias."""
        return concept.alias or (concept.name if concept.name in self.context else None)


def tidy(words: str) -> str:
    """Normalises words: composed characters (NFC), single spaces, no zero-width characters."""
    return unicodedata.normalize("NFC", " ".join(words.translate(_NO_WIDTH).split()))


def parse_concepts(text: str) -> Vocabulary:
    """Parses a list such as "cat, dog" from the command line. Quoted names may contain commas.

    Raises:
        RecoError: empty list, duplicates, too long names, or a file name.
    """
    if text.strip().lower().endswith(SUFFIXES):
        raise SettingError(f"--concepts: {text.strip()} looks like a file: give it with --vocabulary")
    return make_vocabulary({"concepts": parse_names(text)}, "--concepts")


def load_vocabulary(uri: str) -> Vocabulary:
    """Reads a vocabulary file, in any format of docs/vocabularies.md.

    Raises:
        RecoError: the file is missing or malformed.
    """
    try:
        text = decode_text(storage.read_bytes(uri, MAX_BYTES))
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{uri}: not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise file_error(f"{uri}: the vocabulary cannot be read: {reason(error)}", error) from error
    suffix = "." + uri.rpartition("/")[2].rpartition(".")[2].lower()
    try:
        fields = read_fields(text, suffix)
    except RecoError as error:
        raise type(error)(f"{uri}: {error}") from error
    found = make_vocabulary(fields, uri)
    return (
        found.with_concepts(beside_file(concept, uri) for concept in found.concepts)
        if found.chosen
        else found
    )


def beside_file(concept: Concept, uri: str) -> Concept:
    """The concept, with the paths of its images relative to the folder of the file at `uri`."""
    return concept.model_copy(update=images_beside(concept, uri))


def decode_text(data: bytes) -> str:
    """Decodes UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        UnicodeDecodeError: the data is neither.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if data[:2].count(0) == 1:  # UTF-16 without its mark
        return data.decode("utf-16-le" if data[1] == 0 else "utf-16-be")
    return data.decode("utf-8-sig")


def summarize(vocabulary: Vocabulary) -> str:
    """A summary in one line: `20 concepts: aeroplane, sofa (couch, settee), ...`."""
    shown = [
        f"{concept.name} ({', '.join(concept.synonyms[:_SHOWN_WORDS])})" if concept.synonyms else concept.name
        for concept in vocabulary.concepts[:_SHOWN]
    ]
    count = len(vocabulary.concepts)
    more = ", ..." if count > _SHOWN else ""
    return f"{count:,} concept{'' if count == 1 else 's'}: {', '.join(shown)}{more}"


def unreadable_words(vocabulary: Vocabulary) -> list[str]:
    """Warnings for words without a letter or a digit, which models cannot interpret."""
    words = [word for concept in vocabulary.concepts for word in concept.words]
    empty = [word for word in words if not any(character.isalnum() for character in word)]
    return [f"{word!r} has neither a letter nor a digit: it says nothing to the models" for word in empty]


def slug(index: int, name: str) -> str:
    """A file name for a concept: its index and its name in lower-case ASCII, at most 100 characters."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")[:MAX_NAME_LENGTH]
    return f"{index:03d}-{plain}".rstrip("-")


def make_vocabulary(fields: dict[str, Any], source: str) -> Vocabulary:
    try:
        return Vocabulary(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "there is no such field"
        raise UnreadableError(f"{source}: {place + ': ' if place else ''}{message}") from error
