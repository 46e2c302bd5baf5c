"""Cache of text embeddings: a folder of safetensors per text model, shared by all processes of a machine.

Loading a text encoder takes seconds; with this cache most workers never load one.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reco_ray.files.caches import cache_directory

_in_memory = False
_MAX_IN_MEMORY = 20_000  # texts; 30 MB at 384 dimensions


def keep_in_memory() -> None:
    """Stops reading and writing the cache directory in this process, and limits the number of texts in memory.

    For servers: their users must not be able to fill the disk.
    """
    global _in_memory
    _in_memory = True


class TextCache:
    """Text embeddings on disk, by the model's fingerprint and the text."""

    def __init__(self, model_fingerprint: str) -> None:
        digest = hashlib.sha256(model_fingerprint.encode()).hexdigest()[:16]
        self._directory = cache_directory() / "texts" / digest
        self._known: dict[str, torch.Tensor] = {}

    def lookup(
        self, texts: Sequence[str], encode: Callable[[list[str]], torch.Tensor], device: torch.device
    ) -> torch.Tensor:
        """Returns (n, d) float32 rows for `texts`; calls `encode` with those that are not cached."""
        if any(text not in self._known for text in texts) and not _in_memory:
            self._read()
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            embeddings = encode(missing).float().cpu()
            self._known.update(zip(missing, embeddings, strict=True))
            if not _in_memory:
                self._write(missing, embeddings)
            elif len(self._known) > _MAX_IN_MEMORY + len(texts):
                for text in [known for known in self._known if known not in texts][: len(missing)]:
                    del self._known[text]
        return torch.stack([self._known[text] for text in texts]).to(device)

    def _read(self) -> None:
        for file in sorted(self._directory.glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as stored:
                    texts = json.loads(stored.metadata()["texts"])
                    self._known.update(zip(texts, stored.get_tensor("embeddings"), strict=True))
            except (SafetensorError, OSError, KeyError, TypeError, ValueError):
                continue  # damaged: embed its texts again

    def _write(self, texts: list[str], embeddings: torch.Tensor) -> None:
        """Writes a file of the cache; failures, such as a read-only directory, are ignored."""
        name = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] + ".safetensors"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._directory, suffix=".tmp")
            os.close(handle)
            save_file({"embeddings": embeddings.contiguous()}, temporary, {"texts": json.dumps(texts)})
            os.replace(temporary, self._directory / name)  # atomic, for concurrent workers
        except OSError:
            return
