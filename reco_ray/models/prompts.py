"""Prompt templates, prompt ensembles, and the check that a text encoder supports a script."""

import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from reco_ray.errors import SettingError
from reco_ray.models.protocols import LanguageImageModel

# In scenes a concept is rarely the subject of the photograph. No article, for mass nouns (sky, road).
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
    """Returns the templates of a set, each with one `{}`; "imagenet+scene" joins two sets.

    Args:
        name: "plain", the words alone; "imagenet", the 80 templates of CLIP (Radford et al., ICML 2021); "simple", 7 of
            them that perform as well, as open_clip lists them; "scene", objects as parts of a scene.

    Raises:
        SettingError: the name is unknown.
    """
    templates = [template for part in name.split("+") for template in _template_set(part.strip())]
    return list(dict.fromkeys(templates))


def encode_prompts(
    model: LanguageImageModel, names_per_concept: Sequence[Sequence[str]], templates: str = "plain"
) -> torch.Tensor:
    """Embeds concepts: the normalised mean of the unit embeddings of each concept's prompts (CLIP, section 3.1.4).

    Args:
        model: called once with all prompts.
        names_per_concept: m lists of names and synonyms.
        templates: as for `prompt_templates`.

    Returns:
        (m, d) float32, unit rows, on the model's device.

    Raises:
        SettingError: the templates are unknown, or the model does not support the script of a name.
        ValueError: a concept has no names.
    """
    if any(not names for names in names_per_concept):
        raise ValueError("every concept needs at least one name")
    patterns = prompt_templates(templates)
    prompts = [[p.replace("{}", name) for name in names for p in patterns] for names in names_per_concept]
    embeddings = model.encode_texts([prompt for group in prompts for prompt in group])
    groups = embeddings.split([len(group) for group in prompts])
    return F.normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=1)


def require_latin(texts: Sequence[str], model: str) -> None:
    """Rejects texts that an English text encoder would silently turn into noise.

    Raises:
        SettingError: a text has letters of another script (Cyrillic, Han, Arabic, ...).
    """
    for text in texts:
        if not text.isascii() and any(map(_is_foreign, unicodedata.normalize("NFKC", text))):
            raise SettingError(f"{text!r}: {model} reads English only: give the concept an English synonym")


def _is_foreign(character: str) -> bool:
    return character.isalpha() and not unicodedata.name(character, "").startswith(("LATIN", "MODIFIER"))


def _template_set(name: str) -> Sequence[str]:
    if name == "plain":
        return ("{}",)
    if name == "scene":
        return SCENE_TEMPLATES
    if name not in TEMPLATE_NAMES:
        raise SettingError(f"unknown templates {name!r}: choose of {', '.join(TEMPLATE_NAMES)}; + joins them")
    # Imported here: it takes seconds, and the mini preset does not need it.
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    functions = OPENAI_IMAGENET_TEMPLATES if name == "imagenet" else SIMPLE_IMAGENET_TEMPLATES
    return [function("{}") for function in functions]
