"""Weights that balance the classes of a cross-entropy."""

import torch
from torch import Tensor


def median_frequency_weights(frequencies: Tensor) -> Tensor:
    """√(median / frequency) of each class: (C,) float32, of (C,) float pixel counts.

    A class that was never seen takes the largest weight of the others. As CMB's released code weights its
    cross-entropies on Cityscapes (utils/class_balancing.py, ClassBalancing.get_weights).
    """
    frequencies = frequencies.double()
    seen = frequencies > 0
    ratio = torch.where(seen, frequencies.quantile(0.5) / torch.where(seen, frequencies, 1), 0)
    return torch.where(seen, ratio, ratio.max()).sqrt().float()
