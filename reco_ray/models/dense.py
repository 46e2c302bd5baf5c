"""The two dense models of a preset as one: pixels in, visual and language features out, shared work done once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from reco_ray.config import ModelSettings
from reco_ray.models.affinity import pool_by_affinity
from reco_ray.models.image import ImageTransform
from reco_ray.models.protocols import DenseEncoder, LanguageImageModel
from reco_ray.models.registry import load_dense_encoder, load_language_image_model
from reco_ray.models.sliding import fit_to_stride, slide


@dataclass(frozen=True)
class DenseFeatures:
    """visual: (b, c, h, w) float32, not normalised. language: (b, d, h', w') float32, unit vectors."""

    visual: torch.Tensor
    language: torch.Tensor


class DenseModels:
    """A dense encoder beside the dense branch of a language-image model, each with its own normalisation and stride.

    settings: `affinity` pools the language features over what the encoder finds alike; `window` and `window_step` have
    larger images encoded in windows.
    """

    def __init__(self, language: LanguageImageModel, encoder: DenseEncoder, settings: ModelSettings) -> None:
        self.language, self.encoder, self._settings = language, encoder, settings
        # `mini`: the encoder is the classifier's own trunk, so half of the language branch is already computed.
        self._shares_trunk = getattr(language, "trunk_fingerprint", None) == encoder.fingerprint

    @classmethod
    def load(cls, models: ModelSettings, *, device: str = "cpu", seed: int = 0) -> "DenseModels":
        """Loads both models of the settings; errors as for the registry."""
        # Eight bits are for whole images; of `paper`'s language model, a ResNet, they would be refused.
        precision = "auto" if models.precision == "int8" else models.precision
        options = {"weights": models.weights, "device": device, "seed": seed, "precision": precision}
        language = load_language_image_model(models.language or models.retrieval, **options)  # type: ignore[arg-type]
        return cls(language, load_dense_encoder(models.encoder, **options), models)  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        """Of all that determines the features; an index serves every dense attention of its model, references one."""
        attention = getattr(self.language, "attention", "")
        parts = [f"{self.language.fingerprint}{attention and '@'}{attention}", self.encoder.fingerprint]
        if self._settings.affinity != "none":
            parts.append(f"affinity={self._settings.affinity}")
        if self._settings.window:
            parts.append(f"window={self._settings.window}/{self._step}")
        return " + ".join(parts)

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        """uint8 (b, H, W, 3), sides multiples of the encoder's stride -> features."""
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
            language = F.normalize(language, dim=1)  # means of unit vectors are shorter
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
        """Normalises and encodes pixels, in windows if the settings say so; windows are rounded to the stride."""
        images = transform.normalize(pixels)
        if not self._settings.window:
            return encode(images)
        window, step = (max(1, round(side / stride)) * stride for side in (self._settings.window, self._step))
        return slide(encode, fit_to_stride(images, stride), window=window, step=step, stride=stride)


class EncodedOnce:
    """`DenseModels` for one image: a part of it that is looked at several times is encoded once."""

    def __init__(self, models: DenseModels) -> None:
        self._models = models
        self._kept: dict[tuple[int, torch.Size], DenseFeatures] = {}

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        """As `DenseModels.encode`; pixels are views of one tensor, told apart by where they begin in it."""
        part = (int(pixels.storage_offset()), pixels.shape)
        if part not in self._kept:
            self._kept[part] = self._models.encode(pixels)
        return self._kept[part]
