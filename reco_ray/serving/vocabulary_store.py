"""Vocabularies and their banks in the state directory, where they survive restarts.

- `vocabularies/<owner>/<name>.json`: a VocabularyRecord; `vocabularies/<owner>/<name>/<key>/`: its ReferenceBank
"""

import time
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from reco_ray.files import storage
from reco_ray.files.filesystems import delete_folder, list_folders
from reco_ray.vocabulary import Vocabulary

Status = Literal["building", "ready", "failed"]


class VocabularyRecord(BaseModel):
    """A vocabulary and the state of its build.

    key: digest of the bank to build.
    concept_ids: in the vocabulary's order.
    steps: ids of all that is built for the bank: concepts, context concepts, and the feature sample, if any.
    before: the previous version that was ready; served until this one is.
    """

    owner: str
    name: str
    vocabulary: Vocabulary
    key: str
    concept_ids: list[str]
    steps: list[str]
    status: Status = "building"
    error: str | None = None
    before: "VocabularyRecord | None" = None
    made_at: float = Field(default_factory=time.time)


class VocabularyStore:
    """Stores vocabularies in a folder.

    Args:
        folder: URI; created with the first vocabulary.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def load(self) -> list[VocabularyRecord]:
        """Reads all vocabularies; other files are ignored."""
        found = []
        for owner in list_folders(self.folder):
            for name in storage.list_names(storage.join(self.folder, owner), ".json"):
                try:
                    data = storage.read_bytes(storage.join(self.folder, owner, name))
                    record = VocabularyRecord.model_validate_json(data)
                except (OSError, ValidationError):
                    continue
                if (record.owner, f"{record.name}.json") == (owner, name):
                    found.append(record)
        return found

    def save(self, record: VocabularyRecord) -> None:
        """Writes a vocabulary's record."""
        storage.write_bytes(self._record(record), record.model_dump_json(indent=2).encode())

    def delete(self, record: VocabularyRecord) -> None:
        """Deletes a vocabulary with its banks."""
        storage.remove(self._record(record))
        self.delete_banks(record, keep=set())

    def delete_banks(self, record: VocabularyRecord, keep: set[str]) -> None:
        """Deletes the banks of a vocabulary, except those whose keys are in `keep`."""
        folder = storage.join(self.folder, record.owner, record.name)
        for key in list_folders(folder):
            if key not in keep:
                delete_folder(storage.join(folder, key))

    def bank_uri(self, record: VocabularyRecord) -> str:
        """URI of a vocabulary's ReferenceBank."""
        return storage.join(self.folder, record.owner, record.name, record.key)

    def _record(self, record: VocabularyRecord) -> str:
        return storage.join(self.folder, record.owner, f"{record.name}.json")
