"""Cross-entropy with pseudo-labels that are confident enough."""

import torch
from torch import Tensor
from torch.nn import functional

from semiseg.base.distributed import global_mean
from semiseg.base.labels import IGNORE


def confident_cross_entropy(logits: Tensor, labels: Tensor, confidence: Tensor, threshold: float) -> Tensor:
    """Return (1/N) Σ 1(c ≥ ``threshold``) · −log p: FixMatch's loss, equation 1 of UniMatch (CVPR 2023).

    logits: (B, C, H, W); labels: (B, H, W) int64, pseudo-labels and 255 on padding; confidence c: (B, H, W)
    in [0, 1]. N counts all pixels that are not padding, confident or not. Several processes share the batch:
    each returns its part, and their average is the batch's.
    """
    losses = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    confident = confidence >= threshold
    return global_mean(torch.where(confident, losses, 0).sum(), (labels != IGNORE).sum())
