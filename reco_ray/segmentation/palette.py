"""Colours for any number of labels, far apart in hue and alternating in lightness; each depends on the index only."""

import colorsys

import numpy as np

_GOLDEN_RATIO = 0.618033988749895
_LEVELS = ((0.85, 0.95), (0.55, 1.0), (0.95, 0.70))  # (saturation, value), alternating


def palette(labels: int, *, background: bool = False) -> np.ndarray:
    """Returns RGB colours, uint8 (labels, 3); with `background`, label 0 is black."""
    colours = []
    for number in range(labels - background):
        saturation, value = _LEVELS[number % len(_LEVELS)]
        colours.append(colorsys.hsv_to_rgb((0.02 + number * _GOLDEN_RATIO) % 1.0, saturation, value))
    rgb = (np.array(colours).reshape(-1, 3) * 255).round().astype(np.uint8)
    return np.concatenate([np.zeros((1, 3), np.uint8), rgb]) if background else rgb
