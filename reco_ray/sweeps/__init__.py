"""Hyperparameter sweeps: trials run in parallel, ranked by mIoU or, without labels, by label-free scores."""
