"""References under the digest of what made them, so that vocabularies share those that they have in common.

- `<id>.json`: `name`, `words`, `exemplars` (rank, image_id, uri, similarity)
- `<id>.safetensors`: tensors of `build.build_concept`; written last, so its presence says that the concept is complete
"""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from reco_ray import storage
from reco_ray.cosegmentation.plan import Step
from reco_ray.errors import RecoError

_SUFFIX = ".safetensors"


class ConceptStore:
    """The folder of the references.

    Args:
        folder: URI; made when the first concept is written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def has(self, concept_id: str) -> bool:
        """Whether a concept is complete."""
        return storage.exists(self.uri(concept_id))

    def missing(self, concept_ids: Iterable[str]) -> set[str]:
        """Which of these concepts are not complete; one listing however many there are."""
        return set(concept_ids) - self._complete()

    def write(self, step: Step, exemplars: pa.Table, tensors: dict[str, torch.Tensor]) -> None:
        """Writes a concept.

        Args:
            step: what was built.
            exemplars: `rank`, `image_id`, `uri`, `similarity`, as `retrieve` finds them.
            tensors: as of `build_concept`.
        """
        self.write_bytes(step, exemplars, save_tensors(tensors))

    def write_bytes(self, step: Step, exemplars: pa.Table, tensors: bytes) -> None:
        """`write` of tensors that are serialised already."""
        rows = exemplars.select(["rank", "image_id", "uri", "similarity"]).to_pylist()
        # The name is not what the user calls it: concepts are shared by their words.
        described = {"name": step.concept.words[0], "words": list(step.concept.words), "exemplars": rows}
        storage.write_bytes(self._json(step.id), json.dumps(described).encode())
        storage.write_bytes(self.uri(step.id), tensors)

    def write_alias(self, step: Step, text_embedding: torch.Tensor) -> None:
        """Writes a concept that takes over the reference of another.

        Raises:
            RecoError: that one is gone.
        """
        assert step.same_as is not None, "an alias names what it is an alias of"
        tensors = {**self.read(step.same_as), "text_embedding": text_embedding.cpu().contiguous()}
        exemplars = pa.Table.from_pylist(self.exemplars(step.same_as))
        self.write(step, exemplars, tensors)

    def describe(self, concept_id: str) -> dict[str, Any] | None:
        """What is written beside a concept's tensors; None if there is no such concept."""
        try:
            return json.loads(storage.read_bytes(self._json(concept_id))) if self.has(concept_id) else None
        except (OSError, ValueError):
            return None

    def exemplars(self, concept_id: str) -> list[dict[str, Any]]:
        """The exemplars of a concept in order of rank.

        Raises:
            RecoError: there is no such concept.
        """
        described = self.describe(concept_id)
        if described is None:
            raise RecoError(f"{self._json(concept_id)}: missing or damaged: run the same command again")
        return described["exemplars"]

    def read(self, concept_id: str) -> dict[str, torch.Tensor]:
        """A concept's tensors.

        Raises:
            RecoError: gone or damaged.
        """
        uri = self.uri(concept_id)
        try:
            return load_tensors(storage.read_bytes(uri))
        except Exception as error:  # safetensors has no common base for its errors
            raise RecoError(f"{uri}: missing or damaged ({error}): delete it and run again") from error

    def prune(self, keep: set[str], most: int) -> int:
        """Deletes the oldest concepts beyond `most` that are not in `keep`; returns how many."""
        loose = sorted(self._complete() - keep)
        if len(loose) <= most:
            return 0
        filesystem, path = storage.resolve(self.folder)
        infos = filesystem.get_file_info([f"{path}/{each}{_SUFFIX}" for each in loose])
        age = {each: info.mtime_ns or 0 for each, info in zip(loose, infos, strict=True)}
        oldest = sorted(loose, key=lambda each: age[each])[: len(loose) - most]
        for each in oldest:
            storage.remove(self.uri(each))
            storage.remove(self._json(each))
        return len(oldest)

    def uri(self, concept_id: str) -> str:
        """Where a concept's tensors are."""
        return storage.join(self.folder, f"{concept_id}{_SUFFIX}")

    def _json(self, concept_id: str) -> str:
        return storage.join(self.folder, f"{concept_id}.json")

    def _complete(self) -> set[str]:
        return {name.removesuffix(_SUFFIX) for name in storage.list_names(self.folder, _SUFFIX)}
