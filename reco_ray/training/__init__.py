"""Training: masks -> Segmenter (ReCo+)."""

from reco_ray.training.segmenter import Segmenter

__all__ = ["Segmenter"]
