"""Entropy of the predictions."""

import math

import torch
from torch import Tensor


def entropy_loss(logits: Tensor, valid: Tensor | None = None, *, normalised: bool = False) -> Tensor:
    """−(1/N) Σ_n Σ_c p log p, the mean entropy of the valid pixels (CMB, L_ent).

    logits: (B, C, H, W), the images of all augmented views; valid: (B, H, W) bool, None for all pixels.
    Returns a scalar in [0, log C], in nats; ``normalised`` divides it by log C. Zero without a valid pixel.
    """
    log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    if valid is None:
        valid = torch.ones_like(entropy, dtype=torch.bool)
    mean = torch.where(valid, entropy, 0).sum() / valid.sum().clamp(min=1)
    return mean / math.log(logits.shape[1]) if normalised else mean
