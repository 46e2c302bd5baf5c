"""Language-image models and dense encoders: protocols, loading by name, and one module per family."""

from reco_ray.models.protocols import DenseEncoder, LanguageImageModel
from reco_ray.models.registry import load_dense_encoder, load_language_image_model

__all__ = ["DenseEncoder", "LanguageImageModel", "load_dense_encoder", "load_language_image_model"]
