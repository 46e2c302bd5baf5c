"""Builds the reference embeddings of concepts: retrieves exemplars, co-segments them, stores the result."""

from reco_ray.cosegmentation.context import context_weights
from reco_ray.cosegmentation.cosegment import Cosegmentation, cosegment

__all__ = ["Cosegmentation", "context_weights", "cosegment"]
