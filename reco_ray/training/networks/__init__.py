"""Segmentation networks, one module per family, named as the part of a spec before the colon."""
