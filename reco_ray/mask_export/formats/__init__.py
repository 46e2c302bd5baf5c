"""Formats of masks, one module each; its `FORMAT` is a `mask_export.mask_format.MaskFormat`."""
