"""Sentences are embedded once a machine: a directory of safetensors per text model, looked up by sentence.

Loading a text encoder costs seconds in every worker; with this cache most workers never load one.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def cache_directory() -> Path:
    """`$RECO_CACHE`, else the user's cache directory. Deleting it is always safe."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RECO_CACHE") or Path(base) / "reco-ray")


_in_memory = False
_MOST_IN_MEMORY = 20_000  # sentences; 30 MB at 384 dimensions


def keep_in_memory() -> None:
    """From now on this process neither reads nor writes the directory for sentences that it does not know, and forgets
    the oldest beyond a limit: in a server they come from strangers, who must not fill the disk."""
    global _in_memory
    _in_memory = True


class TextCache:
    """Embeddings of one text model on disk, keyed by the model's fingerprint and the sentence."""

    def __init__(self, model_fingerprint: str) -> None:
        digest = hashlib.sha256(model_fingerprint.encode()).hexdigest()[:16]
        self._directory = cache_directory() / "texts" / digest
        self._known: dict[str, torch.Tensor] = {}

    def lookup(
        self, texts: Sequence[str], encode: Callable[[list[str]], torch.Tensor], device: torch.device
    ) -> torch.Tensor:
        """Returns (n, d) float32 rows for `texts`, calling `encode` only for those never seen before."""
        if any(text not in self._known for text in texts) and not _in_memory:
            self._read()
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            embeddings = encode(missing).float().cpu()
            self._known.update(zip(missing, embeddings, strict=True))
            if not _in_memory:
                self._write(missing, embeddings)
            elif len(self._known) > _MOST_IN_MEMORY + len(texts):
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
                continue  # damaged: embedding its sentences again costs seconds, stopping would cost the run

    def _write(self, texts: list[str], embeddings: torch.Tensor) -> None:
        """Best effort: a read-only home costs time, not the run."""
        name = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] + ".safetensors"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._directory, suffix=".tmp")
            os.close(handle)
            save_file({"embeddings": embeddings.contiguous()}, temporary, {"texts": json.dumps(texts)})
            os.replace(temporary, self._directory / name)  # atomic: concurrent workers never see half a file
        except OSError:
            return
