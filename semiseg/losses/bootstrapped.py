"""Annealed bootstrapped cross-entropy: labelled pixels count only until the network is sure of them."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from semiseg.base.distributed import global_mean
from semiseg.base.labels import IGNORE


def bootstrap_threshold(step: int, steps: float, num_classes: int, final: float = 0.9) -> float:
    """Return η(step) in [1 / num_classes, final], which rises for the first ``steps`` steps (CCT, ab-CE).

    η = 1/C + (final − 1/C) (1 − exp(−5 t)) with t = step / steps, at most 1. The paper names both ends; the
    curve between them is the released code's (utils/ramps.py 22-26).
    """
    risen = 1.0 if steps <= 0 else min(step / steps, 1.0)
    first = 1 / num_classes
    return first + (final - first) * (1 - math.exp(-5 * risen))


def bootstrapped_cross_entropy(
    logits: Tensor, labels: Tensor, threshold: float, *, mean_over: str = "labelled"
) -> Tensor:
    """Return (1/N) Σ_n 1(p_n < η) · −log p_n, with p_n the probability of pixel n's label (CCT, equation 3).

    logits: (B, C, H, W); labels: (B, H, W) int64, class ids and 255; threshold: η in (0, 1]. N counts the
    labelled pixels, or with ``mean_over`` "kept" those below η. Zero without any, where the released code
    always keeps a pixel an image (utils/losses.py 199, 212-213). Several processes share the batch: each
    returns its part, and their average is the batch's.
    """
    losses = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    labelled = labels != IGNORE
    kept = labelled & (losses.detach() > -math.log(threshold))
    counted = kept if mean_over == "kept" else labelled
    return global_mean(torch.where(kept, losses, 0).sum(), counted.sum())
