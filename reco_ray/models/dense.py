"""The dense encoder and the dense language model of a preset behind one `encode`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from reco_ray.config import ModelSettings
from reco_ray.models.affinity import pool_by_affinity
from reco_ray.models.image import ImageTransform
from reco_ray.models.load_model import load_dense_encoder, load_language_image_model
from reco_ray.models.protocols import DenseClassifier, DenseEncoder, LanguageImageModel, require_dense
from reco_ray.models.sliding import fit_to_stride, slide


@dataclass(frozen=True)
class DenseFeatures:
    """Dense features of b images.

    Attributes:
        visual: (b, c, h, w) float32, not normalised.
        language: (b, d, h', w') float32, unit vectors.
        logits: of a language model that is a classifier, (b, k, h', w') float32; else None.
        classes: text embeddings of the classifier's classes, (k, d) unit rows; else None.
        image: mean over all locations of `logits` or else `language`, (b, k or d); None: computed when needed.
    """

    visual: torch.Tensor
    language: torch.Tensor
    logits: torch.Tensor | None = None
    classes: torch.Tensor | None = None
    image: torch.Tensor | None = None

    def select(self, number: int) -> "DenseFeatures":
        """The features of one image, with b = 1."""
        one = slice(number, number + 1)
        return DenseFeatures(
            self.visual[one],
            self.language[one],
            None if self.logits is None else self.logits[one],
            self.classes,
            None if self.image is None else self.image[one],
        )


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
        """Loads both models of the settings; errors as of `load_language_image_model` and `require_dense`."""
        # int8 is for embeddings of whole images; the ResNet of `paper` does not support it.
        precision = "auto" if models.precision == "int8" else models.precision
        options = {"weights": models.weights, "device": device, "seed": seed, "precision": precision}
        language = load_language_image_model(models.language or models.retrieval, **options)  # type: ignore[arg-type]
        require_dense(language)
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
        logits = self._logits(visual, pixels) if isinstance(self.language, DenseClassifier) else None
        if isinstance(self.language, DenseClassifier) and logits is not None:
            language = self.language.combine(logits)
        else:
            language = self._slide(
                self.language.encode_dense, self.language.transform, self.language.stride, pixels
            )
        if self._settings.affinity != "none":
            language = pool_by_affinity(language, visual, self._settings.affinity)
        if self._settings.affinity != "none" or (self._settings.window and logits is None):
            language = F.normalize(language, dim=1)  # means of unit vectors are not unit vectors
        return DenseFeatures(visual, language, logits, self.classes)

    @property
    def classes(self) -> torch.Tensor | None:
        """Text embeddings of the classes of a language model that is a classifier, (k, d) unit rows; else None."""
        return self.language.class_embeddings if isinstance(self.language, DenseClassifier) else None

    def _logits(self, visual: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        classifier = self.language
        assert isinstance(classifier, DenseClassifier)
        if self._shares_trunk:
            return classifier.dense_logits_from_trunk(visual)
        return self._slide(classifier.dense_logits, classifier.transform, classifier.stride, pixels)

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
