"""Curation files: the images that a person chose for the concepts of a vocabulary; docs/curation.md shows one."""

from collections.abc import Iterator, Mapping
from typing import NoReturn

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from reco_ray.errors import UnreadableError, file_error, reason
from reco_ray.files import storage
from reco_ray.vocabulary import Concept, Vocabulary, decode_text, tidy
from reco_ray.vocabulary.chosen_images import CHOICES, Chosen, images_beside

MAX_BYTES = 1 << 24  # of a file
_SINGLE = {"boxes": "box", "points": "point"}  # one is validated under the name of several
_SHOWN = 10  # concepts in a line
_DEPTH = 3  # of mappings in which a key may not be repeated: the file, its concepts, the fields of each


class Curation(BaseModel):
    """The content of a curation file: chosen images by name of the concept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concepts: dict[str, Chosen]


def curated(vocabulary: Vocabulary, uri: str) -> Vocabulary:
    """The vocabulary with the images that a curation file chooses, in addition to those that it has.

    Raises:
        RecoError: the file is missing or malformed, or names an unknown concept; the line names the place in the file.
    """
    curation, document = _read(uri)
    for key, chosen in curation.concepts.items():
        images = images_beside(chosen, uri)
        try:
            own = _concept(vocabulary, key)
            both = {kind: (*getattr(own, kind), *images[kind]) for kind in CHOICES}
            only = own.only_chosen or chosen.only_chosen
            vocabulary = with_chosen(vocabulary, {key: Chosen(**both, only_chosen=only)})
        except ValueError as error:
            _fail(uri, document, ("concepts", key), validation_message(error))
    return vocabulary


def with_chosen(vocabulary: Vocabulary, chosen: Mapping[str, Chosen]) -> Vocabulary:
    """The vocabulary with images for some of its concepts, in place of those that they have.

    Args:
        vocabulary: the concepts.
        chosen: by name of the concept.

    Raises:
        ValueError: there is no such concept, or the images do not fit it.
    """
    changed = {_concept(vocabulary, name).name: images for name, images in chosen.items()}
    return vocabulary.with_concepts(
        concept.with_chosen(changed[concept.name]) if concept.name in changed else concept
        for concept in vocabulary.concepts
    )


def _concept(vocabulary: Vocabulary, key: str) -> Concept:
    name = tidy(key)
    found = next((concept for concept in vocabulary.concepts if concept.name == name), None)
    if found is not None:
        return found
    if name in vocabulary.context:
        raise ValueError(
            f"{name!r} is a context concept: images can be chosen for it if the vocabulary names it"
        )
    names = vocabulary.names
    more = ", ..." if len(names) > _SHOWN else ""
    raise ValueError(f"there is no concept {name!r}: the vocabulary has {', '.join(names[:_SHOWN])}{more}")


def _read(uri: str) -> tuple[Curation, yaml.Node]:
    try:
        text = decode_text(storage.read_bytes(uri, MAX_BYTES))
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{uri}: not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise file_error(f"{uri}: the curation cannot be read: {reason(error)}", error) from error
    loader = yaml.BaseLoader(text)  # builds strings, lists and dicts only
    try:
        document = loader.get_single_node()
        fields = None if document is None else loader.construct_document(document)
    except (yaml.YAMLError, RecursionError) as error:
        raise UnreadableError(f"{uri}: not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()
    if document is None or not isinstance(fields, dict) or not isinstance(fields.get("concepts"), dict):
        raise UnreadableError(f"{uri}: expected 'concepts: {{NAME: {{rejected: [IMAGE, ...]}}}}'")
    for key in _repeated(document, _DEPTH):
        raise UnreadableError(f"{uri}, line {key.start_mark.line + 1}: {key.value}: given twice")
    try:
        return Curation.model_validate(fields), document
    except ValidationError as error:
        first = error.errors()[0]
        _fail(uri, document, first["loc"], validation_message(error))


def _fail(uri: str, document: yaml.Node, place: tuple[int | str, ...], message: str) -> NoReturn:
    """Raises UnreadableError, with the line and the field of the file."""
    node, known = document, []
    for part in place:
        if isinstance(node, yaml.MappingNode):
            inner = {key.value: (key, value) for key, value in node.value}
            found = inner.get(str(part)) or inner.get(_SINGLE.get(str(part), ""))
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
        known.append(str(part))
    number = line + 1 if known else document.start_mark.line + 1
    raise UnreadableError(f"{uri}, line {number}: {'.'.join(known) or 'file'}: {message}")


def validation_message(error: ValueError) -> str:
    """What is wrong, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return f"{first['loc'][-1]}: there is no such field"
    return first["msg"].removeprefix("Value error, ")


def _repeated(node: yaml.Node, depth: int) -> Iterator[yaml.Node]:
    """Keys that a mapping has twice, of which YAML would keep the last."""
    if not isinstance(node, yaml.MappingNode) or not depth:
        return
    seen = set()
    for key, value in node.value:
        if key.value in seen and isinstance(key.value, str):
            yield key
        if isinstance(key.value, str):
            seen.add(key.value)
        yield from _repeated(value, depth - 1)
