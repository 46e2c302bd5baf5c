"""Language-image models and dense encoders: protocols, loading by name, and one module per family."""

from reco_ray.models.load_model import load_dense_encoder, load_language_image_model
from reco_ray.models.protocols import DenseEncoder, LanguageImageModel

__all__ = ["DenseEncoder", "LanguageImageModel", "load_dense_encoder", "load_language_image_model"]
