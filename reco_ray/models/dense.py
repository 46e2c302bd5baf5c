"""The dense encoder and the dense language model of a preset behind one `encode`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from reco_ray.config import ModelSettings
from reco_ray.models.affinity import pool_by_affinity
from reco_ray.models.image import ImageTransform
from reco_ray.models.load_model import load_dense_encoder, load_language_image_model
from reco_ray.models.protocols import DenseEncoder, LanguageImageModel
from reco_ray.models.sliding import fit_to_stride, slide


@dataclass(frozen=True)
class DenseFeatures:
    """Dense features of b images.

    Attributes:
        visual: (b, c, h, w) float32, not normalised.
        language: (b, d, h', w') float32, unit vectors.
    """

    visual: torch.Tensor
    language: torch.Tensor


def load_retrieval_model(
    models: ModelSettings, *, device: str = "cpu", seed: int = 0, dense: "DenseModels | None" = None
) -> LanguageImageModel:
    """Loads the model that an index is made and searched with; errors as of `load_language_image_model`.

    Args:
        models: of the settings.
        device: as for `load_language_image_model`.
        seed: of random weights.
        dense: the dense models where they are loaded; their language model is returned where it is the same.
    """
    if dense is not None and models.language is None:
        return dense.language
    options = {"weights": models.weights, "device": device, "seed": seed, "precision": models.precision}
    return load_language_image_model(models.retrieval, **options)  # type: ignore[arg-type]


class DenseModels:
    """A dense encoder and the dense branch of a language-image model, each with its own normalisation and stride.

    Args:
        language: gives the language features.
        encoder: gives the visual features.
        settings: `affinity` enables affinity pooling of the language features; `window` and `window_step` enable
            sliding windows for larger images.
    """

    def __init__(self, language: LanguageImageModel, encoder: DenseEncoder, settings: ModelSettings) -> None:
        self.language, self.encoder, self._settings = language, encoder, settings
        # In `mini` the encoder is the trunk of the language model's classifier: it runs only once.
        self._shares_trunk = getattr(language, "trunk_fingerprint", None) == encoder.fingerprint

    @classmethod
    def load(cls, models: ModelSettings, *, device: str = "cpu", seed: int = 0) -> "DenseModels":
        """Loads both models of the settings; errors as of `load_language_image_model`."""
        # int8 is for embeddings of whole images; the ResNet of `paper` does not support it.
        precision = "auto" if models.precision == "int8" else models.precision
        options = {"weights": models.weights, "device": device, "seed": seed, "precision": precision}
        language = load_language_image_model(models.language or models.retrieval, **options)  # type: ignore[arg-type]
        return cls(language, load_dense_encoder(models.encoder, **options), models)  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        """Identifies everything that determines the features, including the dense attention, which an index ignores."""
        attention = getattr(self.language, "attention", "")
        parts = [f"{self.language.fingerprint}{attention and '@'}{attention}", self.encoder.fingerprint]
        if self._settings.affinity != "none":
            parts.append(f"affinity={self._settings.affinity}")
        if self._settings.window:
            parts.append(f"window={self._settings.window}/{self._step}")
        return " + ".join(parts)

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        """Encodes images: uint8 (b, H, W, 3), sides multiples of the encoder's stride -> features."""
        visual = self._slide(self.encoder.encode, self.encoder.transform, self.encoder.stride, pixels)
        if self._shares_trunk:
            language = self.language.encode_dense_from_trunk(visual)  # type: ignore[attr-defined]
        else:
            language = self._slide(
                self.language.encode_dense, self.language.transform, self.language.stride, pixels
            )
        if self._settings.affinity != "none":
            language = pool_by_affinity(language, visual, self._settings.affinity)
        if self._settings.affinity != "none" or self._settings.window:
            language = F.normalize(language, dim=1)  # means of unit vectors are not unit vectors
        return DenseFeatures(visual, language)

    @property
    def _step(self) -> int:
        return self._settings.window_step or (self._settings.window or 0) // 2

    def _slide(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        transform: ImageTransform,
        stride: int,
        pixels: torch.Tensor,
    ) -> torch.Tensor:
        """Normalises and encodes pixels; windows, if configured, are rounded to multiples of the stride."""
        images = transform.normalize(pixels)
        if not self._settings.window:
            return encode(images)
        window, step = (max(1, round(side / stride)) * stride for side in (self._settings.window, self._step))
        return slide(encode, fit_to_stride(images, stride), window=window, step=step, stride=stride)


class CachedDenseModels:
    """`DenseModels` with a cache, to encode the same image, or parts of it, for several vocabularies."""

    def __init__(self, models: DenseModels) -> None:
        self._models = models
        self._cache: dict[tuple[int, torch.Size], DenseFeatures] = {}

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        """As `DenseModels.encode`. All inputs must be views of one tensor: offset and shape are the cache key."""
        key = (int(pixels.storage_offset()), pixels.shape)
        if key not in self._cache:
            self._cache[key] = self._models.encode(pixels)
        return self._cache[key]
