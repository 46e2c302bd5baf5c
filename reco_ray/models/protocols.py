"""Interfaces of the models. A new family implements one of them and is registered by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from PIL import Image

from reco_ray.errors import SettingError
from reco_ray.models.image import ImageTransform

if TYPE_CHECKING:
    import torch


@runtime_checkable
class LanguageImageModel(Protocol):
    """Embeds images, locations of images and texts in one space.

    All embeddings are float32 on the model's device, of unit length along the feature axis.

    Attributes:
        module: the network.
        transform: input format of images.
        embedding_dim: d.
        stride: pixels per location of dense features.
        fingerprint: identifies the model and its weights.

    A model that can only embed whole images also has `spec`, its name, and `dense_unsupported`, which says why.
    """

    module: torch.nn.Module
    transform: ImageTransform
    embedding_dim: int
    stride: int
    fingerprint: str

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Resizes, crops and normalises: PIL image -> (3, H, W) float32."""
        ...

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Embeds images: (b, 3, H, W) normalised -> (b, d) unit rows."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeds n texts: (n, d) unit rows."""
        ...

    def encode_dense(self, images: torch.Tensor) -> torch.Tensor:
        """Embeds every location: (b, 3, H, W) normalised -> (b, d, h, w) unit vectors."""
        ...


@runtime_checkable
class DenseClassifier(Protocol):
    """A LanguageImageModel that classifies every location, and embeds it by its classes.

    Attributes:
        transform: input format of images.
        stride: pixels per location.
        class_embeddings: text embeddings of the k classes, (k, d) unit rows.
    """

    transform: ImageTransform
    stride: int
    class_embeddings: torch.Tensor

    def dense_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Classifies every location: (b, 3, H, W) normalised -> (b, k, h, w) float32."""
        ...

    def dense_logits_from_trunk(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """As `dense_logits`, from the features of an encoder that is its trunk: (b, c, h, w) -> (b, k, h, w)."""
        ...

    def combine(self, logits: torch.Tensor) -> torch.Tensor:
        """Embeds every location: (b, k, h, w) logits -> (b, d, h, w) unit vectors."""
        ...


@runtime_checkable
class DenseEncoder(Protocol):
    """Computes the visual features from which references are built and that are compared with them.

    Attributes:
        module: the network.
        transform: input format of images.
        channels: c.
        stride: pixels per location.
        fingerprint: identifies the model and its weights.
    """

    module: torch.nn.Module
    transform: ImageTransform
    channels: int
    stride: int
    fingerprint: str

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encodes images: (b, 3, H, W) normalised -> (b, c, H / stride, W / stride) float32, not normalised."""
        ...


def require_dense(model: LanguageImageModel) -> None:
    """Checks that a model has dense features.

    Raises:
        SettingError: it has none.
    """
    if why := getattr(model, "dense_unsupported", None):
        spec = getattr(model, "spec", "the model")
        raise SettingError(
            f"{spec} has no dense features: {why}; take a ViT or RN model, also as models.language"
        )
