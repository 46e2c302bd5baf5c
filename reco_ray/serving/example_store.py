"""Own example images of vocabularies in the state directory: `examples/<owner>/<image id>`."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from reco_ray.errors import SettingError
from reco_ray.files import storage
from reco_ray.serving.vocabulary_store import VocabularyRecord
from reco_ray.vocabulary import Concept, Vocabulary
from reco_ray.vocabulary.chosen_images import ChosenImage, is_image_id


class ExampleStore:
    """Stores images by the owner and by the digest of their bytes.

    Args:
        folder: URI; created with the first image.
        most: own examples of a vocabulary, at most.
    """

    def __init__(self, folder: str, most: int) -> None:
        self._folder, self._most = folder, most
        self._arriving: Counter[str] = Counter()

    @contextmanager
    def arriving(self, images: Iterable[str]) -> Iterator[None]:
        """Keeps these images from being deleted, although no vocabulary has them yet."""
        names = list(images)
        self._arriving.update(names)
        try:
            yield
        finally:
            self._arriving.subtract(names)

    def keep(self, owner: str, vocabulary: Vocabulary, images: dict[str, bytes]) -> Vocabulary:
        """Writes images; returns the vocabulary with the URIs of its examples in place of their ids.

        Raises:
            SettingError: an example is neither among `images` nor known, or there are too many.
        """
        count = sum(len(concept.examples) for concept in vocabulary.concepts)
        if count > self._most:
            raise SettingError(f"{count} examples: at most {self._most} in a vocabulary")
        if not count:
            return vocabulary
        for name, data in images.items():
            storage.write_bytes(self._uri(owner, name), data)
        return vocabulary.with_concepts(self._placed(owner, concept) for concept in vocabulary.concepts)

    def prune(self, owner: str, records: Iterable[VocabularyRecord]) -> None:
        """Deletes images of an owner that none of the vocabularies has."""
        used: set[str] = set()
        for record in records:
            version: VocabularyRecord | None = record if record.owner == owner else None
            while version is not None:
                used |= {str(each.image_id) for c in version.vocabulary.concepts for each in c.examples}
                version = version.before
        folder = storage.join(self._folder, owner)
        for name in storage.list_names(folder):
            if name not in used and not self._arriving[name]:
                storage.remove(storage.join(folder, name))

    def without_folder(self, owner: str, message: str) -> str:
        """A message for the owner, without the place of the files on this machine."""
        return message.replace(storage.join(self._folder, owner) + "/", "")

    def _placed(self, owner: str, concept: Concept) -> Concept:
        examples = tuple(self._place(owner, each) for each in concept.examples)
        return concept.model_copy(update={"examples": examples})

    def _place(self, owner: str, each: ChosenImage) -> ChosenImage:
        name = each.image_id or each.image
        if not is_image_id(name) or not storage.exists(self._uri(owner, name)):
            raise SettingError(f"examples: {name}: there is no such example: send the image")
        return each.model_copy(update={"image": self._uri(owner, name)})

    def _uri(self, owner: str, name: str) -> str:
        return storage.join(self._folder, owner, name)
