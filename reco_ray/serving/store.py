"""Files below the state directory: cached concepts, vocabularies with their banks; back after a restart.

- `concepts/<id>.json`: CONCEPT fields `name`, `words`, `exemplars` (rank, image_id, uri, similarity);
  `concepts/<id>.safetensors`: its part (`cosegmentation/parts.py`) and its `text_embedding`; written last
- `vocabularies/<owner>/<name>.json`: a Record; `vocabularies/<owner>/<name>/<key>/`: its ReferenceBank
"""

import json
import time
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load as load_tensors

from reco_ray import storage
from reco_ray.errors import RecoError
from reco_ray.serving.bank import part_uri
from reco_ray.stores import delete_folder, list_folders
from reco_ray.vocabulary import Vocabulary

Status = Literal["building", "ready", "failed"]


class Record(BaseModel):
    """A vocabulary that was put: whose, what it holds, how far it is.

    key: of the bank that it asks for. before: what had this name and was ready; it is served until this one is.
    concept_ids: in the vocabulary's order. steps: ids of all concepts that its bank is made of.
    """

    owner: str
    name: str
    vocabulary: Vocabulary
    key: str
    concept_ids: list[str]
    steps: list[str]
    status: Status = "building"
    error: str | None = None
    before: "Record | None" = None
    made_at: float = Field(default_factory=time.time)


class ConceptStore:
    """The concepts' folder.

    Args:
        folder: URI; made when the first concept is written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def has(self, concept_id: str) -> bool:
        """Whether a concept is complete."""
        return storage.exists(part_uri(self.folder, concept_id))

    def write(self, concept_id: str, described: dict[str, Any], part: bytes) -> None:
        """Keeps a concept."""
        storage.write_bytes(self._json(concept_id), json.dumps(described).encode())
        storage.write_bytes(part_uri(self.folder, concept_id), part)

    def describe(self, concept_id: str) -> dict[str, Any] | None:
        """What was written beside its tensors; None if there is no such concept."""
        try:
            return json.loads(storage.read_bytes(self._json(concept_id))) if self.has(concept_id) else None
        except (OSError, ValueError):
            return None

    def part(self, concept_id: str) -> dict[str, torch.Tensor]:
        """A concept's tensors.

        Raises:
            RecoError: gone or damaged.
        """
        uri = part_uri(self.folder, concept_id)
        try:
            return load_tensors(storage.read_bytes(uri))
        except Exception as error:  # safetensors has no common base for its errors
            raise RecoError(f"{uri}: damaged ({error}): delete it") from error

    def prune(self, keep: set[str], most: int) -> int:
        """Deletes the oldest concepts beyond `most` that are not in `keep`; says how many."""
        filesystem, path = storage.resolve(self.folder)
        listed = storage.list_names(self.folder, ".safetensors")
        loose = [name.removesuffix(".safetensors") for name in listed]
        loose = [each for each in loose if each not in keep]
        if len(loose) <= most:
            return 0
        infos = filesystem.get_file_info([f"{path}/{each}.safetensors" for each in loose])
        age = {each: info.mtime_ns or 0 for each, info in zip(loose, infos, strict=True)}
        doomed = sorted(loose, key=lambda each: age[each])[: len(loose) - most]
        for each in doomed:
            storage.remove(part_uri(self.folder, each))
            storage.remove(self._json(each))
        return len(doomed)

    def _json(self, concept_id: str) -> str:
        return storage.join(self.folder, f"{concept_id}.json")


class RecordStore:
    """The vocabularies' folder.

    Args:
        folder: URI; made when the first vocabulary is put.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def load(self) -> list[Record]:
        """All vocabularies that were put and not deleted. Files that are none are left alone."""
        found = []
        for owner in list_folders(self.folder):
            for name in storage.list_names(storage.join(self.folder, owner), ".json"):
                try:
                    data = storage.read_bytes(storage.join(self.folder, owner, name))
                    record = Record.model_validate_json(data)
                except (OSError, ValidationError):
                    continue
                if (record.owner, f"{record.name}.json") == (owner, name):
                    found.append(record)
        return found

    def save(self, record: Record) -> None:
        """Writes a vocabulary's record."""
        storage.write_bytes(self._record(record), record.model_dump_json(indent=2).encode())

    def delete(self, record: Record) -> None:
        """Deletes a vocabulary with its banks."""
        storage.remove(self._record(record))
        self.delete_banks(record, keep=set())

    def delete_banks(self, record: Record, keep: set[str]) -> None:
        """Deletes the banks of a vocabulary but those of the keys `keep`."""
        folder = storage.join(self.folder, record.owner, record.name)
        for key in list_folders(folder):
            if key not in keep:
                delete_folder(storage.join(folder, key))

    def bank_uri(self, record: Record) -> str:
        """Where a vocabulary's ReferenceBank is."""
        return storage.join(self.folder, record.owner, record.name, record.key)

    def _record(self, record: Record) -> str:
        return storage.join(self.folder, record.owner, f"{record.name}.json")
