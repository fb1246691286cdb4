"""Weights that balance the classes of a cross-entropy."""

import torch
from torch import Tensor


def median_frequency_weights(frequencies: Tensor) -> Tensor:
    """Return √(median / frequency) of each class, (C,) float32, for pixel counts (C,) float.

    A class that was never seen takes the largest weight of the others. CMB's released code weights its
    cross-entropies on Cityscapes so (utils/class_balancing.py 97-117).
    """
    frequencies = frequencies.double()
    seen = frequencies > 0
    ratio = torch.where(seen, frequencies.quantile(0.5) / torch.where(seen, frequencies, 1), 0)
    return torch.where(seen, ratio, ratio.max()).sqrt().float()
