"""The index over a corpus: nearest images to an embedding, by cosine, with FAISS (Douze et al., 2024)."""

from types import ModuleType

import numpy as np
import pyarrow as pa

from reco_ray import storage
from reco_ray.errors import RecoError, reason

KIND = "index"


def load_faiss() -> ModuleType:
    """The faiss module, whichever package provides it.

    Raises:
        RecoError: none is installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise RecoError(
            'FAISS is not installed: pip install "reco-ray[cpu]", or "reco-ray[gpu]" on a GPU machine'
        ) from error
    return faiss


def build_index(embeddings: str, out: str) -> tuple[storage.Manifest, bool]:
    """Builds the index of an embeddings artifact.

    Returns:
        The manifest, and whether there was anything to do.
    """
    faiss = load_faiss()
    source = storage.read_manifest(embeddings, "embeddings")
    made_from = {
        "embeddings": storage.absolute(embeddings),
        "made_at": source.made_at,
        "model": source.content["model"],
    }
    writer = storage.ArtifactWriter(out, KIND, made_from)
    if manifest := writer.finished():
        return manifest, False
    table = storage.read_table(storage.join(embeddings, "embeddings"))
    index = faiss.IndexFlatIP(source.content["dim"])
    for chunk in table["embedding"].chunks:
        vectors = chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), index.d)
        index.add(vectors.astype(np.float32))
    storage.write_bytes(storage.join(writer.uri, "vectors.faiss"), faiss.serialize_index(index).tobytes())
    storage.write_table(storage.join(writer.uri, "images.parquet"), table.drop_columns(["embedding"]))
    content = {"dim": source.content["dim"], "model": source.content["model"], "factory": "Flat"}
    return writer.commit({"images": index.ntotal}, content), True


class CorpusIndex:
    """An opened index artifact.

    Args:
        uri: where it is.
        model: fingerprint of the model whose embeddings will be searched.

    Raises:
        RecoError: missing, unfinished, or made with another model.
    """

    def __init__(self, uri: str, model: str) -> None:
        faiss = load_faiss()
        self.uri = storage.absolute(uri)
        self.manifest = storage.read_manifest(uri, KIND)
        made_with = self.manifest.content["model"]
        if made_with != model:
            raise RecoError(
                f"{uri}: made with model {made_with}, but this run uses {model}: index the corpus with it"
            )
        try:
            stored = np.frombuffer(storage.read_bytes(storage.join(uri, "vectors.faiss")), np.uint8)
            self._index = faiss.deserialize_index(stored)
            self.images: pa.Table = storage.read_table(storage.join(uri, "images.parquet"))
        except (OSError, RuntimeError, pa.ArrowInvalid) as error:
            raise RecoError(f"{uri}: damaged ({reason(error)}): delete it and index again") from error

    def __len__(self) -> int:
        return self._index.ntotal

    def search(self, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest images of each row.

        Args:
            embeddings: float32 (n, d), unit rows.
            k: at most the number of images.

        Returns:
            Cosine similarities float32 (n, k), falling, and rows of `images` int64 (n, k).

        Raises:
            RecoError: k is larger than the corpus.
        """
        if k > len(self):
            raise RecoError(
                f"{self.uri}: {k} exemplars are asked for, but it has {len(self)} images: "
                f"use --exemplars {len(self)} or fewer"
            )
        return self._index.search(np.ascontiguousarray(embeddings, np.float32), k)
