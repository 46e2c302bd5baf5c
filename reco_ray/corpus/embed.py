"""Embeds pixels; uses neither Ray nor files."""

from collections.abc import Sequence

import numpy as np
import torch

from reco_ray.models.protocols import LanguageImageModel


def embed_pixels(model: LanguageImageModel, pixels: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Embeds n uint8 (H, W, 3) crops of one size; returns float16 (n, d) with unit rows.

    Half precision changes cosines by less than 1e-3 and halves the artifact.
    """
    if not pixels:
        return np.zeros((0, model.embedding_dim), np.float16)
    batches = []
    for start in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(np.stack(pixels[start : start + batch_size]))
        batches.append(model.encode_images(model.transform.normalize(batch)).cpu())
    return torch.cat(batches).to(torch.float16).numpy()
