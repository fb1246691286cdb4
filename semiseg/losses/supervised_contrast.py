"""Supervised contrast: features of one class attract each other and repel the others'."""

import torch
from torch import Tensor


def supervised_contrastive_loss(
    features: Tensor, labels: Tensor, valid: Tensor, *, temperature: float, denominator: str = "others"
) -> Tensor:
    """Return −(1/N) Σ_i (1/|P_i|) Σ_{p in P_i} log(exp(z_i·z_p / τ) / D_ip), a mean over the valid rows.

    features z: (N, D) of norm one; labels: (N,) int; valid: (N,) bool, rows that count. P_i are the other
    valid rows of row i's label. With ``denominator`` "others", D_ip sums exp(z_i·z_a / τ) over all other
    valid rows (SupCon, Khosla et al., NeurIPS 2020, equation 2); with "negatives", over p and those of other
    labels (Wang et al., ICCV 2021, equation 3). A row without positives adds zero, as in SupCon's code
    (losses.py 98-100); ContrastiveSeg's divides by zero (lib/loss/loss_contrast.py 123). Returns a scalar, in
    float32 for lower precisions; zero without a valid row.
    """
    precision = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        rows = features.to(precision)
        similarity = rows @ rows.mT / temperature
    alike = labels[:, None] == labels[None, :]
    apart = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    pairs = valid[:, None] & valid[None, :] & apart
    positive = pairs & alike
    if denominator == "others":
        total = _log_sum_exp(similarity, pairs)
    else:
        total = torch.logaddexp(similarity, _log_sum_exp(similarity, pairs & ~alike))
    log_p = torch.where(positive, similarity - total, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return -log_p.sum() / valid.sum().clamp(min=1)


def _log_sum_exp(values: Tensor, counted: Tensor) -> Tensor:
    """Return log Σ exp of each row's counted values, (N, 1); a row without any gets a number of exp 0."""
    smallest = torch.finfo(values.dtype).min / 2
    return torch.where(counted, values, smallest).logsumexp(dim=1, keepdim=True)
