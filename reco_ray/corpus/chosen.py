"""Opens the images that a person chose for concepts: own examples by their files, others in the index of the corpus."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reco_ray.config import Settings
from reco_ray.corpus.containers import owner_of
from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.corpus.read import read_image_bytes
from reco_ray.corpus.regions import crop_regions
from reco_ray.corpus.web import is_web
from reco_ray.errors import MissingError, RecoError, SettingError, UnreadableError, file_error, reason
from reco_ray.files import storage
from reco_ray.vocabulary import Concept, Vocabulary
from reco_ray.vocabulary.chosen_images import Chosen, ChosenImage, is_image_id

if TYPE_CHECKING:  # checks before a run import neither FAISS nor torch
    from reco_ray.corpus.index import CorpusIndex

_SMALLEST = 32  # pixels; JPEGs are decoded no larger than this needs


def open_examples(vocabulary: Vocabulary, settings: Settings) -> Vocabulary:
    """Reads the own examples of a vocabulary, and notes their content.

    Args:
        vocabulary: the concepts.
        settings: `embed.max_pixels` and `references.geometry` are used.

    Returns:
        The vocabulary, with the id and size of each example.

    Raises:
        RecoError: an example cannot be read, or a box or point is outside it; the line names concept and image.
    """
    return _with_images(vocabulary, "examples", lambda _, each: _open_example(each, settings), settings)


def require_files(vocabulary: Vocabulary, settings: Settings) -> None:
    """Checks rejected and pinned images by their files, where there is no index yet that could be asked.

    Args:
        vocabulary: the concepts.
        settings: as for `open_examples`.

    Raises:
        RecoError: a pinned image cannot be read, a box or point is outside it, or a local path does not exist.
    """

    def open_pinned(_: Concept, each: ChosenImage) -> ChosenImage:
        return each if is_image_id(each.image) else _open_example(each, settings)

    def require_file(_: Concept, each: ChosenImage) -> ChosenImage:
        if is_image_id(each.image) or is_web(each.image) or owner_of(each.image) is not None:
            return each
        path = storage.local_path(each.image)
        if path is not None and not storage.exists(path):
            raise MissingError("there is no such file")
        return each

    _with_images(vocabulary, "pinned", open_pinned, settings)
    _with_images(vocabulary, "rejected", require_file, settings)


def resolve_chosen(vocabulary: Vocabulary, index: "CorpusIndex", settings: Settings) -> Vocabulary:
    """Opens own examples, and looks up the other images that were chosen in the index.

    Args:
        vocabulary: the concepts.
        index: of the corpus.
        settings: as for `open_examples`, and `references.exemplars`.

    Returns:
        The vocabulary, in which every chosen image has its id and size; its references depend on nothing else.

    Raises:
        RecoError: as `open_examples`; an image is not in the index, or the concept has too few exemplars left.
    """
    if not vocabulary.chosen:
        return vocabulary
    vocabulary = open_examples(vocabulary, settings)
    names = {each.image for c in vocabulary.concepts for each in (*c.rejected, *c.pinned)}
    found = index.images.find(names)

    def look_up(concept: Concept, each: ChosenImage) -> ChosenImage:
        if each.image not in found:
            raise MissingError(
                "is not in the index: name it as exemplars.parquet does, by its URI (or path), or by its image_id"
            )
        row = found[each.image]
        return each.model_copy(update={"image": row["uri"]}).opened(
            row["image_id"], row["width"], row["height"]
        )

    for kind in ("rejected", "pinned"):
        vocabulary = _with_images(vocabulary, kind, look_up, settings)
    return vocabulary.with_concepts(_consistent(c, index, settings) for c in vocabulary.concepts)


def _open_example(each: ChosenImage, settings: Settings) -> ChosenImage:
    try:
        data = read_image_bytes(each.image)
    except OSError as error:
        raise file_error(f"cannot be read: {reason(error)}", error) from error
    try:
        _, width, height = decode_image(data, max_pixels=settings.embed.max_pixels, short_side=_SMALLEST)
    except DecodeError as error:
        raise UnreadableError(str(error)) from error
    return each.opened(hashlib.sha256(data).hexdigest(), width, height)


def _with_images(
    vocabulary: Vocabulary,
    kind: str,
    change: Callable[[Concept, ChosenImage], ChosenImage],
    settings: Settings,
) -> Vocabulary:
    """Changes the images of one kind of choice; errors get the concept and the image in front."""

    def changed(concept: Concept, each: ChosenImage) -> ChosenImage:
        try:
            made = change(concept, each)
            crop_regions(made, settings.references.geometry)
        except (RecoError, ValueError) as error:
            raised = type(error) if isinstance(error, RecoError) else SettingError
            raise raised(f"concept {concept.name!r}: {kind}: {each.image}: {error}") from error
        return made

    concepts = []
    for concept in vocabulary.concepts:
        images: Any = tuple(changed(concept, each) for each in getattr(concept, kind))
        concepts.append(concept.model_copy(update={kind: images}) if images else concept)
    return vocabulary.with_concepts(concepts)


def _consistent(concept: Concept, index: "CorpusIndex", settings: Settings) -> Concept:
    """The concept with each image once.

    Raises:
        SettingError: an image is both rejected and an exemplar, or too few images are left.
    """
    if not concept.chosen:
        return concept
    unique: dict[str, dict[str, ChosenImage]] = {}
    for kind in ("rejected", "pinned", "examples"):
        unique[kind] = {str(each.image_id): each for each in getattr(concept, kind)}
    examples, rejected = unique["examples"], unique["rejected"]
    pinned = {key: each for key, each in unique["pinned"].items() if key not in examples}
    for key, each in rejected.items():
        if key in examples or key in pinned:
            other = (examples.get(key) or pinned[key]).image
            raise SettingError(
                f"concept {concept.name!r}: rejected: {each.image}: is also chosen as an exemplar ({other})"
            )
    chosen = Chosen(
        rejected=tuple(rejected.values()),
        pinned=tuple(pinned.values()),
        examples=tuple(examples.values()),
        only_chosen=concept.only_chosen,
    )
    wanted, left = (
        places_left(concept.with_chosen(chosen), settings.references.exemplars),
        len(index) - len(rejected) - len(pinned),
    )
    if wanted > left:
        fewer = max(1, left + len(pinned) + len(examples))
        raise SettingError(
            f"concept {concept.name!r}: {len(rejected)} of {len(index)} images are rejected, which leaves "
            f"{max(0, left)} for {wanted} exemplars: reject fewer, or use --exemplars {fewer}"
        )
    return concept.with_chosen(chosen)


def places_left(concept: Concept, exemplars: int) -> int:
    """How many exemplars of a concept are retrieved: those that were not chosen, if there are words to retrieve by."""
    if concept.only_chosen or not concept.words:
        return 0
    return max(0, exemplars - len(concept.pinned) - len(concept.examples))
