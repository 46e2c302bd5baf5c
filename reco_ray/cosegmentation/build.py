"""Plans references for an index, finds and loads exemplars, and builds the reference of one concept. No Ray."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from reco_ray.config import ReferenceSettings, Settings
from reco_ray.corpus.chosen import resolve_chosen
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.load import ImageLoader, pixels_of
from reco_ray.cosegmentation.contact_sheet import contact_sheet
from reco_ray.cosegmentation.prototypes import prototypes
from reco_ray.cosegmentation.reference_plan import ReferencePlan, plan_references
from reco_ray.cosegmentation.references import reference_from_pixels
from reco_ray.cosegmentation.retrieve import EXAMPLE, retrieve_exemplars
from reco_ray.errors import RecoError, UnreadableError
from reco_ray.models.dense import DenseModels
from reco_ray.models.image import ImageTransform
from reco_ray.models.prompts import encode_prompts
from reco_ray.models.protocols import LanguageImageModel
from reco_ray.vocabulary import Vocabulary


@dataclass(frozen=True)
class ReferenceInputs:
    """Inputs of the references of a plan, by id of the step.

    Attributes:
        texts: text embeddings of the dense language model, float32 (d,).
        exemplars: exemplars of the co-segmented steps, as `retrieve_exemplars` returns them.
    """

    texts: dict[str, np.ndarray]
    exemplars: dict[str, pa.Table]


def plan_for_index(
    vocabulary: Vocabulary, index: CorpusIndex, settings: Settings, dense: str
) -> ReferencePlan:
    """Opens the images that a person chose for a vocabulary's concepts, and plans its references.

    Args:
        vocabulary: the concepts.
        index: of the corpus.
        settings: of the run.
        dense: fingerprint of the dense models.

    Raises:
        RecoError: as `resolve_chosen`.
    """
    manifest = index.manifest
    resolved = resolve_chosen(vocabulary, index, settings)
    return plan_references(resolved, settings, index.uri, manifest.made_at, manifest.content.model, dense)


def prepare_inputs(
    plan: ReferencePlan,
    index: CorpusIndex,
    retrieval: LanguageImageModel,
    language: LanguageImageModel,
    settings: Settings,
) -> ReferenceInputs:
    """Embeds the names of a plan's concepts and finds their exemplars.

    Args:
        plan: of the vocabulary.
        index: of the corpus.
        retrieval: the model of the index.
        language: the dense language model; may be the same.
        settings: `models.templates` and `references` are used.

    Raises:
        SettingError: a model does not support the script of a name, or the corpus has fewer images than exemplars.
    """
    words = [list(step.concept.words) for step in plan.steps]
    queries = embed_words(retrieval, words, settings.models.templates).cpu()
    texts = queries
    if language is not retrieval:
        texts = embed_words(language, words, settings.models.templates).cpu()
    built = [number for number, step in enumerate(plan.steps) if step.same_as is None]
    steps = [plan.steps[number] for number in built]
    exemplars = retrieve_exemplars(
        index,
        [step.id for step in steps],
        [step.concept for step in steps],
        queries[built],
        settings.references,
    )
    return ReferenceInputs(
        {step.id: row.numpy() for step, row in zip(plan.steps, texts, strict=True)}, exemplars
    )


def embed_words(model: LanguageImageModel, words: list[list[str]], templates: str) -> torch.Tensor:
    """Embeds the words of m concepts, (m, d) float32; zeros for a concept without words, which has examples only.

    Raises:
        SettingError: as `encode_prompts`.
    """
    named = [number for number, each in enumerate(words) if each]
    embedded = torch.zeros(len(words), model.embedding_dim)
    if not named:
        return embedded
    found = encode_prompts(model, [words[number] for number in named], templates)
    embedded = embedded.to(found.device)
    embedded[named] = found
    return embedded


def exemplar_loader(transform: ImageTransform, settings: Settings) -> ImageLoader:
    """Returns a loader of square images, as co-segmentation needs one size.

    By default whole images are stretched, since a crop could remove the concept; `references.geometry=crop` selects the
    paper's centre crop.
    """
    size = settings.references.image_size
    to_square = transform.stretch if settings.references.geometry == "whole" else transform.crop
    return ImageLoader(partial(to_square, size=size), short_side=size, max_pixels=settings.embed.max_pixels)


def require_readable(exemplars: pa.Table) -> None:
    """Raises RecoError if an exemplar could not be loaded."""
    unreadable = exemplars.filter(exemplars["reason"].is_valid())
    if unreadable.num_rows:
        first = unreadable.slice(0, 1).to_pylist()[0]
        if first["source"] == EXAMPLE:
            raise UnreadableError(f"{first['uri']}: {first['reason']}, though it is an example of a concept")
        raise unreadable_exemplar(first["uri"], first["reason"])


def unreadable_exemplar(uri: str, reason: str) -> RecoError:
    """The error for an image of the index that is no longer readable."""
    return UnreadableError(
        f"{uri}: {reason}, though it is in the index: `reco-ray run` again takes out what is gone; else embed the "
        "corpus into another --out"
    )


def build_concept(
    models: DenseModels,
    exemplars: pa.Table,
    text_embedding: torch.Tensor,
    context_references: torch.Tensor | None,
    settings: ReferenceSettings,
) -> dict[str, torch.Tensor]:
    """Co-segments the exemplars of one concept.

    Args:
        models: the dense models.
        exemplars: loaded by `exemplar_loader`, in order of retrieval.
        text_embedding: (d,), on the models' device; zero for a concept without words.
        context_references: (r, c), on the models' device, or None.
        settings: of the references.

    Returns:
        On the CPU: `reference` (c,), `prototypes` (c,) or (p, c), `text_embedding` (d,), `seed_locations` int64 (n, 2),
        `support` float16 (n, h, w), and `sheet`, the bytes of the contact sheet as uint8.

    Raises:
        UnreadableError: an exemplar could not be read.
    """
    require_readable(exemplars)
    pixels = np.stack([pixels_of(exemplars, row) for row in range(exemplars.num_rows)])
    aspects = exemplars["width"].to_numpy() / exemplars["height"].to_numpy()
    if settings.geometry == "crop":
        aspects = np.ones(exemplars.num_rows)
    batch = torch.from_numpy(pixels).to(text_embedding.device)
    regions = exemplars["region"].to_pylist()
    result = reference_from_pixels(models, batch, text_embedding, context_references, settings, regions)
    support, seeds = result.support.cpu().numpy(), result.seed_locations.cpu().numpy()
    sheet = contact_sheet(pixels, aspects, support, seeds, regions)
    tensors = {
        "reference": result.reference,
        "prototypes": prototypes(result, settings.prototypes).clone(),  # safetensors refuses aliases
        "text_embedding": text_embedding,
        "seed_locations": result.seed_locations,
        "support": result.support.half(),
        "sheet": torch.frombuffer(bytearray(sheet), dtype=torch.uint8),
    }
    return {key: value.cpu().contiguous() for key, value in tensors.items()}
