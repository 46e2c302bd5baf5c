"""Content-addressed store of references, so that vocabularies with common concepts share them.

- `<id>.json`: `name`, `words`, `exemplars` (rank, image_id, uri, similarity, source, width, height)
- `<id>.sample`: dense features of a sample of the corpus, see `models.feature_sample`
- `<id>.safetensors`: tensors of `build.build_concept`; written last: a concept is complete if it exists
"""

import json
from collections.abc import Iterable
from typing import Literal, NotRequired, TypedDict

import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from reco_ray.cosegmentation.reference_plan import Step
from reco_ray.errors import UnreadableError, reason
from reco_ray.files import storage

_SUFFIX = ".safetensors"
_SAMPLE_SUFFIX = ".sample"
_STORED = ("rank", "image_id", "uri", "similarity", "source", "width", "height")  # of an exemplar


class StoredExemplar(TypedDict):
    """An exemplar of a concept.

    similarity: cosine of image and words; None if it is not known.
    source: "retrieved", "pinned" or "example"; those of earlier versions are retrieved.
    width, height: of the upright original, pixels; earlier versions have none.
    """

    rank: int
    image_id: str
    uri: str
    similarity: float | None
    source: NotRequired[Literal["retrieved", "pinned", "example"]]
    width: NotRequired[int]
    height: NotRequired[int]


class StoredConcept(TypedDict):
    """A concept's JSON file."""

    name: str
    words: list[str]
    exemplars: list[StoredExemplar]


class ConceptStore:
    """A folder of references.

    Args:
        folder: URI, created by the first write.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def has(self, concept_id: str) -> bool:
        """Whether a concept is complete."""
        return storage.exists(self.uri(concept_id))

    def missing(self, concept_ids: Iterable[str]) -> set[str]:
        """Those of the concepts that are not complete, found with a single listing."""
        return set(concept_ids) - self._complete()

    def write(self, step: Step, exemplars: pa.Table, tensors: dict[str, torch.Tensor]) -> None:
        """Writes a concept.

        Args:
            step: what was built.
            exemplars: as `retrieve_exemplars` returns them, loaded.
            tensors: as `build_concept` returns them.
        """
        self.write_bytes(step, exemplars, save_tensors(tensors))

    def write_bytes(self, step: Step, exemplars: pa.Table, tensors: bytes) -> None:
        """As `write`, with tensors serialised by safetensors."""
        rows = exemplars.select([name for name in _STORED if name in exemplars.column_names]).to_pylist()
        # Not the user's name of the concept: concepts with the same words, or the same examples, are shared.
        words = list(step.concept.words)
        described = {"name": words[0] if words else "examples", "words": words, "exemplars": rows}
        storage.write_bytes(self._json(step.id), json.dumps(described).encode())
        storage.write_bytes(self.uri(step.id), tensors)

    def write_alias(self, step: Step, text_embedding: torch.Tensor) -> None:
        """Writes a concept that uses the reference of another concept, `step.same_as`.

        Raises:
            UnreadableError: the other concept is missing or damaged.
        """
        assert step.same_as is not None, "not an alias"
        tensors = {**self.read(step.same_as), "text_embedding": text_embedding.cpu().contiguous()}
        exemplars = pa.Table.from_pylist(self.exemplars(step.same_as))
        self.write(step, exemplars, tensors)

    def describe(self, concept_id: str) -> StoredConcept | None:
        """Content of a concept's JSON file; None if the concept is missing or damaged."""
        try:
            return json.loads(storage.read_bytes(self._json(concept_id))) if self.has(concept_id) else None
        except (OSError, ValueError):
            return None

    def exemplars(self, concept_id: str) -> list[StoredExemplar]:
        """The exemplars of a concept in order of rank.

        Raises:
            UnreadableError: the concept is missing or damaged.
        """
        described = self.describe(concept_id)
        if described is None:
            raise UnreadableError(f"{self._json(concept_id)}: missing or damaged: run the same command again")
        return described["exemplars"]

    def read(self, concept_id: str) -> dict[str, torch.Tensor]:
        """Reads the tensors of a concept.

        Raises:
            UnreadableError: the concept is missing or damaged.
        """
        uri = self.uri(concept_id)
        try:
            return load_tensors(storage.read_bytes(uri))
        except Exception as error:  # safetensors has no common base for its errors
            raise UnreadableError(f"{uri}: missing or damaged ({error}): delete it and run again") from error

    def prune(self, keep: set[str], max_others: int) -> int:
        """Deletes the oldest concepts not in `keep` until `max_others` of them remain, and all samples not in `keep`.

        Returns:
            The number of deleted concepts.
        """
        for name in storage.list_names(self.folder, _SAMPLE_SUFFIX):
            if name.removesuffix(_SAMPLE_SUFFIX) not in keep:
                storage.remove(storage.join(self.folder, name))
        names = [name.removesuffix(_SUFFIX) for name in storage.list_by_age(self.folder, _SUFFIX)]
        others = [each for each in names if each not in keep]
        oldest = others[: max(0, len(others) - max_others)]
        for each in oldest:
            storage.remove(self.uri(each))
            storage.remove(self._json(each))
        return len(oldest)

    def uri(self, concept_id: str) -> str:
        """URI of a concept's tensors."""
        return storage.join(self.folder, f"{concept_id}{_SUFFIX}")

    def sample_uri(self, sample_id: str) -> str:
        """URI of a feature sample of the corpus."""
        return storage.join(self.folder, f"{sample_id}{_SAMPLE_SUFFIX}")

    def read_sample(self, sample_id: str) -> bytes:
        """Reads the file of a feature sample.

        Raises:
            UnreadableError: it is missing or cannot be read.
        """
        uri = self.sample_uri(sample_id)
        try:
            return storage.read_bytes(uri)
        except OSError as error:
            raise UnreadableError(f"{uri}: missing ({reason(error)}): run the same command again") from error

    def has_sample(self, sample_id: str) -> bool:
        """Whether a feature sample is there."""
        return storage.exists(self.sample_uri(sample_id))

    def _json(self, concept_id: str) -> str:
        return storage.join(self.folder, f"{concept_id}.json")

    def _complete(self) -> set[str]:
        return {name.removesuffix(_SUFFIX) for name in storage.list_names(self.folder, _SUFFIX)}
