"""Cross-entropy with labels, true ones and pseudo-labels."""

import torch
from torch import Tensor
from torch.nn import functional

from semiseg.base.distributed import global_mean
from semiseg.base.labels import IGNORE


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return −Σ_n w_n log p_n / Σ_n w_n over the batch's pixels whose label is not 255; zero without one.

    logits: (B, C, H, W); labels: (B, H, W) int64, class ids and 255; class_weights: (C,), None for ones.
    Several processes share the batch: each returns its part, and their average is the batch's.
    """
    total = functional.cross_entropy(logits, labels, class_weights, ignore_index=IGNORE, reduction="sum")
    valid = labels != IGNORE
    if class_weights is None:
        return global_mean(total, valid.sum())
    weights = class_weights[torch.where(valid, labels, 0)]
    return global_mean(total, torch.where(valid, weights, 0).sum())
