"""Segments images with references: scores, refinement, label maps and masks."""

from reco_ray.segmentation.refine import refine
from reco_ray.segmentation.score import LabelMap, concept_scores, label_map, language_attention

__all__ = ["LabelMap", "concept_scores", "label_map", "language_attention", "refine"]
