"""Consistency of predictions with a teacher's."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from semiseg.base.distributed import global_mean

COSTS = ("mse", "squared", "cross_entropy")


def consistency_loss(logits: Tensor, targets: Tensor, valid: Tensor, *, cost: str = "mse") -> Tensor:
    """Return the mean cost of valid pixels' probabilities p = softmax(``logits``) against ``targets`` q.

    logits, targets: (B, C, H, W), targets in [0, 1] and summing to one, which take no gradient; valid:
    (B, H, W) bool. cost: "mse", (1/C) Σ_c (p − q)², in [0, 2 / C] (Tarvainen and Valpola, NeurIPS 2017);
    "squared", Σ_c (p − q)², in [0, 2] (French et al., BMVC 2020); or "cross_entropy", −Σ_c q log p. Zero
    without a valid pixel. Several processes share the batch: each returns its part, and their average is
    the batch's.
    """
    targets = targets.detach()
    if cost == "cross_entropy":
        costs = -(targets * log_softmax(logits, dim=1)).sum(dim=1)
    else:
        squares = (softmax(logits, dim=1) - targets).square()
        costs = squares.mean(dim=1) if cost == "mse" else squares.sum(dim=1)
    return global_mean(torch.where(valid, costs, 0).sum(), valid.sum())
