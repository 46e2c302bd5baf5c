"""Models by name, `family:architecture/pretrained`; each family is a module, imported when asked for."""

from importlib import import_module
from typing import Any

from reco_ray.errors import RecoError
from reco_ray.models.protocols import DenseEncoder, LanguageImageModel

# family -> "module:factory"; a factory takes (name, weights=, device=, seed=, precision=), returns the model.
LANGUAGE_IMAGE_FAMILIES = {
    "conse": "reco_ray.models.conse:load",
    "open_clip": "reco_ray.models.open_clip:load",
}
DENSE_FAMILIES = {
    "efficientnet_lite0": "reco_ray.models.efficientnet_lite:load",
    "timm": "reco_ray.models.timm_encoder:load",
}


def load_language_image_model(
    spec: str, *, weights: str | None = None, device: str = "cpu", seed: int = 0, precision: str = "auto"
) -> LanguageImageModel:
    """Loads a language-image model, e.g. "conse:efficientnet_lite0", "open_clip:RN50/openai".

    Args:
        spec: `family:name`; open_clip names are `architecture/pretrained tag`, the tag "random" giving seeded
            random weights for tests.
        weights: a folder or file with the weights, for machines without a network; None = the variable
            RECO_WEIGHTS, and without that the family's own source.
        device: "cpu", "cuda", "cuda:N" or "auto".
        seed: of random weights; ignored otherwise.
        precision: "auto" (bfloat16 where the hardware has it), "fp32" or "bf16".

    Raises:
        RecoError: unknown spec, missing weights or device; the message says what to do.
    """
    return _load(LANGUAGE_IMAGE_FAMILIES, "language-image model", spec, weights, device, seed, precision)


def load_dense_encoder(
    spec: str, *, weights: str | None = None, device: str = "cpu", seed: int = 0, precision: str = "auto"
) -> DenseEncoder:
    """Loads a dense encoder, e.g. "efficientnet_lite0", "timm:vit_small_patch14_dinov2.lvd142m".

    Arguments and errors as for `load_language_image_model`.
    """
    return _load(DENSE_FAMILIES, "dense encoder", spec, weights, device, seed, precision)


def _load(
    families: dict[str, str],
    kind: str,
    spec: str,
    weights: str | None,
    device: str,
    seed: int,
    precision: str,
) -> Any:
    family, _, name = spec.partition(":")
    if family not in families:
        raise RecoError(f"unknown {kind} {spec!r}: known families are {', '.join(sorted(families))}")
    module, _, factory = families[family].partition(":")
    load = getattr(import_module(module), factory)
    return load(name, weights=weights, device=device, seed=seed, precision=precision)
