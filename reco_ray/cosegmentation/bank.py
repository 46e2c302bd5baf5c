"""The ReferenceBank: the reference of each concept, and the exemplars it was built from.

Files of the artifact:

- `references.safetensors`: `references` (m, c) unit rows, or (m, p, c) with p prototypes per concept; `text_embeddings`
  (m, d) unit rows of the dense language model; `context_references` and `context_text_embeddings`, the same of the r
  context concepts, r possibly 0; all float32
- `sample.safetensors`: dense features of a sample of the corpus, see `models.feature_sample`, over which the scores of
  the concepts are calibrated; not with `segment.calibrate=0`
- `exemplars.parquet`: EXEMPLARS_SCHEMA, concepts in the order of the vocabulary, exemplars in order of rank
- `supports.safetensors`: support maps per concept, (n, h, w) float16
- `sheets/<slug>.jpg`: contact sheets
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from reco_ray.contents import ReferencesContent
from reco_ray.cosegmentation.concept_store import ConceptStore, StoredExemplar
from reco_ray.cosegmentation.reference_plan import ReferencePlan
from reco_ray.cosegmentation.retrieve import RETRIEVED
from reco_ray.errors import OtherModelError, UnreadableError
from reco_ray.files import artifacts, storage
from reco_ray.models.dense import DenseFeatures
from reco_ray.models.feature_sample import from_bytes
from reco_ray.vocabulary import Vocabulary, slug

SAMPLE = "sample.safetensors"

# similarity: cosine of image and words; null if it is not known. source: "retrieved", "pinned" or "example".
# width, height: of the upright image, pixels; null for references of earlier versions.
# seed_row, seed_col: location in the support map. support: its value there, in [0, 1] times the weight.
EXEMPLARS_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("rank", pa.int32()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("similarity", pa.float32()),
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seed_row", pa.int32()),
        ("seed_col", pa.int32()),
        ("support", pa.float32()),
    ]
)


@dataclass(frozen=True)
class ReferenceBank:
    """References in memory.

    Attributes:
        uri: of the artifact; "" if it was not opened from one.
        vocabulary: m concepts.
        references: (m, c) or (m, p, c) float32 unit rows, in the order of the vocabulary.
        text_embeddings: (m, d) float32 unit rows.
        context_names: names of the r context concepts.
        context_references: (r, c) or (r, p, c) float32 unit rows.
        context_text_embeddings: (r, d) float32 unit rows.
        model: fingerprint of the dense models.
        made_at: time of the artifact's manifest; "" if there is none.
        digest: of the concepts and references; "" if it was never written. Equal digests make equal masks.
        sample: dense features of a sample of the corpus; None if there is none.
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
    digest: str = ""
    sample: DenseFeatures | None = None

    @classmethod
    def open(cls, uri: str, model: str | None = None) -> "ReferenceBank":
        """Opens an artifact.

        Args:
            uri: of the artifact.
            model: fingerprint of the models it is used with; not checked if None.

        Raises:
            RecoError: it is missing, unfinished, damaged, or made with other models.
        """
        manifest = artifacts.read_manifest(uri, ReferencesContent)
        content = manifest.content
        if model is not None and content.model != model:
            raise OtherModelError(
                f"{uri}: made with models {content.model}, but this run uses {model}: build the references anew"
            )
        try:
            data = storage.read_bytes(storage.join(uri, "references.safetensors"))
            tensors = load_tensors(data)
            sample_uri = storage.join(uri, SAMPLE)
            sample = storage.read_bytes(sample_uri) if storage.exists(sample_uri) else None
            features = None if sample is None else from_bytes(sample)
        except Exception as error:  # safetensors has no common base for its errors
            raise UnreadableError(
                f"{uri}: damaged ({error}): delete it and build the references again"
            ) from error
        return cls(
            storage.absolute(uri),
            content.vocabulary,
            tensors["references"],
            tensors["text_embeddings"],
            content.context,
            tensors["context_references"],
            tensors["context_text_embeddings"],
            content.model,
            manifest.made_at,
            # Of the fields in the file: a later version may have more, which do not change old references.
            storage.digest(
                content.vocabulary.model_dump(mode="json", exclude_unset=True),
                hashlib.sha256(data).hexdigest(),
                *([] if sample is None else [hashlib.sha256(sample).hexdigest()]),
            ),
            features,
        )

    def exemplars(self) -> pa.Table:
        """The exemplars of all concepts, EXEMPLARS_SCHEMA."""
        return storage.read_table(storage.join(self.uri, "exemplars.parquet"))

    def sheet_uri(self, index: int) -> str:
        """URI of a concept's contact sheet, a JPEG."""
        return storage.join(self.uri, "sheets", f"{slug(index, self.vocabulary.names[index])}.jpg")


def assemble_bank(
    plan: ReferencePlan,
    concepts: Mapping[str, Mapping[str, torch.Tensor]],
    sample: DenseFeatures | None = None,
) -> ReferenceBank:
    """Assembles a bank in memory.

    Args:
        plan: of the vocabulary.
        concepts: tensors by id of the step, at least `prototypes` and `text_embedding` as of `build_concept`.
        sample: dense features of a sample of the corpus; None if scores are not calibrated.
    """

    def rows(ids: tuple[str, ...], name: str) -> torch.Tensor:
        example = concepts[plan.ids[0]][name]
        found = [concepts[each][name] for each in ids]
        return torch.stack(found) if found else example.new_zeros(0, *example.shape)

    return ReferenceBank(
        uri="",
        vocabulary=plan.vocabulary,
        references=rows(plan.ids, "prototypes"),
        text_embeddings=rows(plan.ids, "text_embedding"),
        context_names=list(plan.context),
        context_references=rows(plan.context_ids, "prototypes"),
        context_text_embeddings=rows(plan.context_ids, "text_embedding"),
        model=plan.model,
        made_at="",
        sample=sample,
    )


def write_bank(
    writer: artifacts.ArtifactWriter[ReferencesContent], plan: ReferencePlan, store: ConceptStore
) -> dict[str, int]:
    """Writes the files of a bank whose concepts are all in the store; the caller commits.

    Returns:
        The counts of the manifest; `exemplars` includes those of the context concepts.

    Raises:
        UnreadableError: a concept is missing or damaged, or the feature sample is missing.
    """
    concepts = {each: store.read(each) for each in {*plan.ids, *plan.context_ids}}
    bank = assemble_bank(plan, concepts)
    tables, supports = [], {}
    for number, (concept, concept_id) in enumerate(zip(plan.vocabulary.concepts, plan.ids, strict=True)):
        tensors, name = concepts[concept_id], slug(number, concept.name)
        supports[name] = tensors["support"]
        storage.write_bytes(
            storage.join(writer.uri, "sheets", f"{name}.jpg"), tensors["sheet"].numpy().tobytes()
        )
        tables.append(_exemplars(concept.name, store.exemplars(concept_id), tensors))
    references = {
        "references": bank.references,
        "text_embeddings": bank.text_embeddings,
        "context_references": bank.context_references,
        "context_text_embeddings": bank.context_text_embeddings,
    }
    exemplars = pa.concat_tables(tables)
    if plan.sample_id is not None:
        storage.write_bytes(storage.join(writer.uri, SAMPLE), store.read_sample(plan.sample_id))
    storage.write_bytes(storage.join(writer.uri, "references.safetensors"), save_tensors(references))
    storage.write_bytes(storage.join(writer.uri, "supports.safetensors"), save_tensors(supports))
    storage.write_table(storage.join(writer.uri, "exemplars.parquet"), exemplars)
    # One seed per exemplar: the concepts need not be read again.
    retrieved = sum(len(concepts[step.id]["seed_locations"]) for step in plan.steps if step.same_as is None)
    return {"concepts": len(plan.vocabulary.concepts), "exemplars": retrieved}


def _exemplars(name: str, rows: list[StoredExemplar], tensors: Mapping[str, torch.Tensor]) -> pa.Table:
    row, col = tensors["seed_locations"].int().numpy().T
    support = tensors["support"].float().numpy()[np.arange(len(row)), row, col]
    columns = [field for field in EXEMPLARS_SCHEMA if not field.name.startswith(("seed_", "support"))]
    found = pa.Table.from_pylist(
        [{"concept": name, "source": RETRIEVED, **each} for each in rows], schema=pa.schema(columns)
    )
    for column, values in (("seed_row", row), ("seed_col", col), ("support", support)):
        found = found.append_column(column, pa.array(values))
    return found.select(EXEMPLARS_SCHEMA.names).cast(EXEMPLARS_SCHEMA)
