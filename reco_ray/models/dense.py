"""The two dense models of a preset as one: pixels in, visual and language features out, shared work done once."""

from dataclasses import dataclass

import torch

from reco_ray.config import ModelSettings
from reco_ray.models.protocols import DenseEncoder, LanguageImageModel
from reco_ray.models.registry import load_dense_encoder, load_language_image_model


@dataclass(frozen=True)
class DenseFeatures:
    """visual: (b, c, h, w) float32, not normalised. language: (b, d, h', w') float32, unit vectors."""

    visual: torch.Tensor
    language: torch.Tensor


class DenseModels:
    """A dense encoder beside the dense branch of a language-image model, each with its own normalisation and stride."""

    def __init__(self, language: LanguageImageModel, encoder: DenseEncoder) -> None:
        self.language, self.encoder = language, encoder
        # `mini`: the encoder is the classifier's own trunk, so half of the language branch is already computed.
        self._shares_trunk = getattr(language, "trunk_fingerprint", None) == encoder.fingerprint

    @classmethod
    def load(cls, models: ModelSettings, *, device: str = "cpu", seed: int = 0) -> "DenseModels":
        """Loads both models of the settings; errors as for the registry."""
        options = {"weights": models.weights, "device": device, "seed": seed, "precision": models.precision}
        language = load_language_image_model(models.language or models.retrieval, **options)  # type: ignore[arg-type]
        return cls(language, load_dense_encoder(models.encoder, **options))  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        # An index is the same for every dense attention of its model; references are not.
        attention = getattr(self.language, "attention", "")
        return f"{self.language.fingerprint}{attention and '@'}{attention} + {self.encoder.fingerprint}"

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        """uint8 (b, H, W, 3), sides multiples of the encoder's stride -> features."""
        visual = self.encoder.encode(self.encoder.transform.normalize(pixels))
        if self._shares_trunk:
            return DenseFeatures(visual, self.language.encode_dense_from_trunk(visual))  # type: ignore[attr-defined]
        return DenseFeatures(visual, self.language.encode_dense(self.language.transform.normalize(pixels)))
