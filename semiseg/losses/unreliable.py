"""Losses from unreliable pseudo-labels (U2PL)."""

import torch
from torch import Tensor
from torch.nn import functional

from semiseg.base.distributed import gathered, global_mean, summed
from semiseg.base.labels import IGNORE


@torch.no_grad()
def quantile(values: Tensor, valid: Tensor, share: float) -> Tensor:
    """Return the value below which ``share`` of the valid values of all processes lie: a scalar.

    values: (...) float; valid: (...) bool; share in [0, 1]. Between two values it is interpolated as NumPy's
    percentile does (U2PL, equation 9: γ_t, with share 1 − α_t). Infinite without a valid value.
    """
    ordered = gathered(torch.where(valid, values, torch.inf).flatten()).sort().values
    place = share * (summed(valid.sum()) - 1).clamp(min=0).double()
    low, high = ordered[torch.stack((place.floor(), place.ceil())).long()].unbind()
    return torch.where(low == high, low, torch.lerp(low, high, place.frac().to(low.dtype)))


def reliable_cross_entropy(logits: Tensor, labels: Tensor, reliable: Tensor) -> Tensor:
    """Return λ_u times the mean cross-entropy of the reliable pixels (U2PL, equations 4 and 10).

    logits: (B, C, H, W); labels: (B, H, W) int64, pseudo-labels and 255 on padding; reliable: (B, H, W) bool.
    λ_u is the number of pixels that are not padding over the number of those that are reliable. Zero without
    any. Several processes share the batch: each returns its part, and their average is the batch's.
    """
    known = labels != IGNORE
    kept = known & reliable
    losses = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    pixels, number = summed(torch.stack((known.sum(), kept.sum())))
    return pixels / number.clamp(min=1) * global_mean(torch.where(kept, losses, 0).sum(), kept.sum())


def anchor_contrastive_loss(
    anchors: Tensor,
    valid: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    present: Tensor | None = None,
) -> Tensor:
    """Return −(1/C) Σ_c (1/M) Σ_i log(e^{⟨z_i, z⁺⟩/τ} / (e^{⟨z_i, z⁺⟩/τ} + Σ_j e^{⟨z_i, z⁻_ij⟩/τ})).

    anchors z: (C, M, D); valid: (C, M) bool, anchors that count, of which M is the number in each class;
    positives z⁺: (C, D), one for each class; negatives z⁻: (C, M, N, D). ⟨·, ·⟩ is the cosine. present:
    (C,) bool, the classes that C counts (None: all). A scalar in float32 (float64 for float64); zero without
    an anchor (U2PL, equation 7).
    """
    precision = torch.promote_types(anchors.dtype, torch.float32)
    with torch.autocast(anchors.device.type, enabled=False):
        unit = functional.normalize(anchors.to(precision), dim=2)
        positive = torch.einsum("cmd,cd->cm", unit, functional.normalize(positives.to(precision), dim=1))
        norms = torch.linalg.vector_norm(negatives, dim=3, dtype=precision).clamp(min=1e-12)
        negative = torch.einsum("cmd,cmnd->cmn", unit, negatives.to(precision)) / norms
    logits = torch.cat((positive[:, :, None], negative), dim=2) / temperature
    losses = torch.where(valid, logits.logsumexp(dim=2) - logits[:, :, 0], 0).sum(dim=1)
    number = valid.sum(dim=1)
    of_classes = losses / number.clamp(min=1)
    return of_classes.sum() / (len(valid) if present is None else present.sum().clamp(min=1))
