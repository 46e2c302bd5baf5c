"""Concepts in, a bank of reference embeddings out: retrieve, co-segment, keep."""

from reco_ray.cosegmentation.context import context_weights
from reco_ray.cosegmentation.cosegment import Cosegmentation, cosegment

__all__ = ["Cosegmentation", "context_weights", "cosegment"]
