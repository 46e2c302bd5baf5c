"""Words to text embeddings: prompt templates by name, their ensemble, and the scripts a model can read."""

import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from reco_ray.errors import RecoError
from reco_ray.models.protocols import LanguageImageModel

# Concepts are seldom the subject of a scene's photograph, and mass nouns (sky, road) take no article.
SCENE_TEMPLATES = (
    "a photo of {} in a scene.",
    "a photo of a street with {}.",
    "a photo taken outdoors that shows {}.",
    "a photo taken indoors that shows {}.",
    "{} in the background of a photo.",
    "{} in the foreground of a photo.",
    "a wide view that includes {}.",
    "a cropped view of {}.",
    "{}, seen from far away.",
    "{}, seen from nearby.",
    "{} behind other things.",
    "one part of a picture, showing {}.",
)
TEMPLATE_NAMES = ("plain", "simple", "imagenet", "scene")


def prompt_templates(name: str) -> list[str]:
    """The templates called `name`, each with one `{}` for the words; "imagenet+scene" joins two sets.

    "plain": the words alone. "imagenet", "simple": the 80 templates of CLIP (Radford et al., ICML 2021) and 7
    of them that do as well, as open_clip lists them. "scene": things as parts of a scene.

    Raises:
        RecoError: unknown name.
    """
    templates = [template for part in name.split("+") for template in _template_set(part.strip())]
    return list(dict.fromkeys(templates))


def encode_prompts(
    model: LanguageImageModel, names_per_concept: Sequence[Sequence[str]], templates: str = "plain"
) -> torch.Tensor:
    """One embedding a concept: the mean of its prompts' unit embeddings, renormalised (CLIP, section 3.1.4).

    Args:
        model: encodes the sentences, all of them in one call.
        names_per_concept: m lists of the words of a concept, synonyms included.
        templates: a name for `prompt_templates`.

    Returns:
        (m, d) float32, unit rows, on the model's device.

    Raises:
        RecoError: unknown templates, or a text in a script that the model cannot read.
        ValueError: a concept without words.
    """
    if any(not names for names in names_per_concept):
        raise ValueError("every concept needs at least one name")
    patterns = prompt_templates(templates)
    prompts = [[p.replace("{}", name) for name in names for p in patterns] for names in names_per_concept]
    embeddings = model.encode_texts([prompt for group in prompts for prompt in group])
    groups = embeddings.split([len(group) for group in prompts])
    return F.normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=1)


def require_latin(texts: Sequence[str], model: str) -> None:
    """Refuses texts that an English text encoder would turn into noise without a word.

    Raises:
        RecoError: a letter of another script (Cyrillic, Han, Arabic, ...); names the text and the way out.
    """
    for text in texts:
        if not text.isascii() and any(map(_is_foreign, unicodedata.normalize("NFKC", text))):
            raise RecoError(f"{text!r}: {model} reads English only: give the concept an English synonym")


def _is_foreign(character: str) -> bool:
    return character.isalpha() and not unicodedata.name(character, "").startswith(("LATIN", "MODIFIER"))


def _template_set(name: str) -> Sequence[str]:
    if name == "plain":
        return ("{}",)
    if name == "scene":
        return SCENE_TEMPLATES
    if name not in TEMPLATE_NAMES:
        raise RecoError(f"unknown templates {name!r}: choose of {', '.join(TEMPLATE_NAMES)}; + joins them")
    # Imported here: the package costs seconds, and the embedded models never need it.
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    functions = OPENAI_IMAGENET_TEMPLATES if name == "imagenet" else SIMPLE_IMAGENET_TEMPLATES
    return [function("{}") for function in functions]
