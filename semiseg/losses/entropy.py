"""Entropy of the predictions."""

import math

import torch
from torch import Tensor

from semiseg.base.distributed import global_mean


def pixel_entropy(logits: Tensor) -> Tensor:
    """Return −Σ_c p log p of each pixel, (B, H, W) in [0, log C], in nats and at least float32.

    logits: (B, C, H, W).
    """
    log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def entropy_loss(logits: Tensor, valid: Tensor | None = None, *, normalised: bool = False) -> Tensor:
    """Return −(1/N) Σ_n Σ_c p log p, the mean entropy of the valid pixels (CMB, L_ent).

    logits: (B, C, H, W), the images of all augmented views; valid: (B, H, W) bool, None for all pixels.
    Returns a scalar in [0, log C], in nats; ``normalised`` divides it by log C. Zero without a valid pixel.
    Several processes share the batch: each returns its part, and their average is the batch's.
    """
    entropy = pixel_entropy(logits)
    if valid is None:
        valid = torch.ones_like(entropy, dtype=torch.bool)
    mean = global_mean(torch.where(valid, entropy, 0).sum(), valid.sum())
    return mean / math.log(logits.shape[1]) if normalised else mean
