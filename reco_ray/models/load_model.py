"""Loads models by name, `family:architecture/pretrained`; families are registered in `reco_ray.registry`."""

from typing import Any

from reco_ray.models.protocols import DenseEncoder, LanguageImageModel
from reco_ray.registry import DENSE_ENCODERS, LANGUAGE_IMAGE_MODELS, Registry


def load_language_image_model(
    spec: str, *, weights: str | None = None, device: str = "cpu", seed: int = 0, precision: str = "auto"
) -> LanguageImageModel:
    """Loads a language-image model, e.g. "conse:efficientnet_lite0", "open_clip:RN50/openai".

    Args:
        spec: `family:name`. Names of open_clip are `architecture/tag`; the tag "random" gives seeded random weights for
            tests.
        weights: folder or file with the weights, for machines without a network. Default: the environment variable
            RECO_WEIGHTS, then the family's own source.
        device: "cpu", "cuda", "cuda:N" or "auto".
        seed: of random weights; ignored otherwise.
        precision: "auto" (bfloat16 where the hardware supports it), "fp32" or "bf16".

    Raises:
        RecoError: the spec is unknown, or weights or device are missing.
    """
    return _load(LANGUAGE_IMAGE_MODELS, spec, weights, device, seed, precision)


def load_dense_encoder(
    spec: str, *, weights: str | None = None, device: str = "cpu", seed: int = 0, precision: str = "auto"
) -> DenseEncoder:
    """Loads a dense encoder, e.g. "efficientnet_lite0", "timm:vit_small_patch14_dinov2.lvd142m".

    Arguments and errors are those of `load_language_image_model`.
    """
    return _load(DENSE_ENCODERS, spec, weights, device, seed, precision)


def family_with(function: str, family: str) -> Any | None:
    """Returns the family of this name if it has `function`, such as `pull`, else None."""
    for registry in (LANGUAGE_IMAGE_MODELS, DENSE_ENCODERS):
        if family in registry.names and hasattr(found := registry.get(family), function):
            return found
    return None


def _load(registry: Registry, spec: str, weights: str | None, device: str, seed: int, precision: str) -> Any:
    family, _, name = spec.partition(":")
    stem = spec.rstrip("0123456789+")
    if family not in registry.names and _is_numbered(registry, stem):
        family, name = stem, spec.removeprefix(stem)
    return registry.get(family, spec).load(
        name, weights=weights, device=device, seed=seed, precision=precision
    )


def _is_numbered(registry: Registry, family: str) -> bool:
    return family in registry.names and getattr(registry.get(family), "NUMBERED", False)
