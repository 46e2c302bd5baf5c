"""The ReferenceBank: one reference a concept, and the evidence it came from.

Files of the artifact:

- `references.safetensors`: `references` (m, c) unit rows, or (m, p, c) with p prototypes a concept, `text_embeddings`
  (m, d) unit rows of the dense language model, and the same of the r context concepts, r possibly 0:
  `context_references`, `context_text_embeddings`; all float32
- `exemplars.parquet`: EXEMPLARS_SCHEMA, concepts in the order of the vocabulary, exemplars in order of rank
- `supports.safetensors`: per concept its support maps (n, h, w) float16
- `sheets/<slug>.jpg`: the contact sheets
"""

from dataclasses import dataclass

import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors

from reco_ray import storage
from reco_ray.errors import RecoError
from reco_ray.vocabulary import Vocabulary, slug

KIND = "references"

# seed_row, seed_col: location in the support map. support: the map's value there, in [0, 1] times the weight.
EXEMPLARS_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("rank", pa.int32()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("similarity", pa.float32()),
        ("seed_row", pa.int32()),
        ("seed_col", pa.int32()),
        ("support", pa.float32()),
    ]
)


@dataclass(frozen=True)
class ReferenceBank:
    """An opened bank.

    references: (m, c) or (m, p, c) float32 unit rows, in the vocabulary's order. text_embeddings: (m, d) unit rows.
    context_*: the same of the context concepts, which may be none. model: fingerprint of the dense models that made it.
    """

    uri: str
    vocabulary: Vocabulary
    references: torch.Tensor
    text_embeddings: torch.Tensor
    context_names: list[str]
    context_references: torch.Tensor
    context_text_embeddings: torch.Tensor
    model: str
    made_at: str

    @classmethod
    def open(cls, uri: str, model: str | None = None) -> "ReferenceBank":
        """Opens a bank; with `model`, the fingerprint of the models it is to be used with.

        Raises:
            RecoError: missing, unfinished, damaged, or made with other models.
        """
        manifest = storage.read_manifest(uri, KIND)
        made_with = manifest.content["model"]
        if model is not None and made_with != model:
            raise RecoError(
                f"{uri}: made with models {made_with}, but this run uses {model}: build the references anew"
            )
        try:
            tensors = load_tensors(storage.read_bytes(storage.join(uri, "references.safetensors")))
        except Exception as error:  # safetensors has no common base for its errors
            raise RecoError(f"{uri}: damaged ({error}): delete it and build the references again") from error
        return cls(
            storage.absolute(uri),
            Vocabulary(**manifest.content["vocabulary"]),
            tensors["references"],
            tensors["text_embeddings"],
            manifest.content["context"],
            tensors["context_references"],
            tensors["context_text_embeddings"],
            made_with,
            manifest.made_at,
        )

    def exemplars(self) -> pa.Table:
        """EXEMPLARS_SCHEMA: what every reference was made from."""
        return storage.read_table(storage.join(self.uri, "exemplars.parquet"))

    def sheet_uri(self, index: int) -> str:
        """The contact sheet of a concept, a JPEG."""
        return storage.join(self.uri, "sheets", f"{slug(index, self.vocabulary.names[index])}.jpg")
