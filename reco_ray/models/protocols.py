"""What the stages ask of a model; a new family implements these and registers itself, nothing else changes."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from PIL import Image

from reco_ray.models.image import ImageTransform


@runtime_checkable
class LanguageImageModel(Protocol):
    """Images and words in one embedding space, whole images and per location.

    All embeddings are float32 on the model's device and unit length along their feature axis.
    """

    module: torch.nn.Module
    transform: ImageTransform
    embedding_dim: int
    stride: int
    fingerprint: str

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """One PIL image -> (3, H, W) float32, resized, cropped and normalised."""
        ...

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, H, W) normalised -> (b, d) unit rows."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """n sentences -> (n, d) unit rows."""
        ...

    def encode_dense(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, H, W) normalised -> (b, d, h, w), a unit vector at every location."""
        ...


@runtime_checkable
class DenseEncoder(Protocol):
    """Visual features per location, from which references are built and with which they are compared."""

    module: torch.nn.Module
    transform: ImageTransform
    channels: int
    stride: int
    fingerprint: str

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, H, W) normalised -> (b, c, h, w) float32, with h = H / stride (not normalised)."""
        ...
