"""Training of segmenters on pseudo-labels (ReCo+)."""

from reco_ray.training.segmenter import Segmenter

__all__ = ["Segmenter"]
