"""reco-ray: concept names and unlabelled images in, a semantic segmenter out."""

__version__ = "0.1.0"
