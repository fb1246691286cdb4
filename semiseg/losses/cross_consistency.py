"""Consistency of several decoders' predictions with one."""

import torch
from torch import Tensor


def cross_consistency_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of K decoders' probabilities to the main one's (CCT, equation 2).

    logits: (B, K, C, H, W), of the auxiliary decoders; target: (B, C, H, W), the main decoder's
    probabilities. A float32 scalar in [0, 2 / C], a mean over decoders, classes and pixels, padding included.
    No gradient reaches ``target``. Several processes share the batch: the average of their means is the
    batch's.
    """
    difference = torch.softmax(logits.float(), dim=2) - target.detach().float()[:, None]
    return difference.square().mean()
