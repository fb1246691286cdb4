"""The directional contrast of pixels seen in two contexts."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from semiseg.base.distributed import global_mean
from semiseg.losses import directional_blocks
from semiseg.losses.directional_blocks import Pairs

COARSEST = 0.05  # the temperature below which float32 cosines make scores too coarse


def directional_contrastive_loss(
    anchors: Tensor,
    positives: Tensor,
    anchor_confidence: Tensor,
    positive_confidence: Tensor,
    anchor_labels: Tensor,
    negatives: Tensor,
    negative_labels: Tensor,
    *,
    temperature: float = 0.1,
    threshold: float = 0.75,
    directional: bool = True,
    positive_filter: bool = True,
    negative_sampling: bool = True,
    normalize: str = "overlap",
    valid: Tensor | None = None,
    negative_valid: Tensor | None = None,
) -> Tensor:
    """Return one direction of DCC's loss (Lai et al., CVPR 2021, section 3.3), a scalar:

    −(1/N) Σ M_d,pf · log( r(φ1, φ2) / ( r(φ1, φ2) + Σ_n M_n · r(φ1, φ_n) ) ),  r = exp(cos / τ).

    anchors φ1 and positives φ2: (N, D); anchor_confidence, positive_confidence: (N,) in [0, 1];
    anchor_labels: (N,) int, pseudo-labels; negatives: (M, D); negative_labels: (M,) int. Rows of features are
    L2-normalised already. Only the anchors take a gradient.

    directional: M_d, an anchor learns only where it is the less confident of the two. positive_filter: M_pf,
    an anchor learns only from a confidence above ``threshold``. negative_sampling: M_n, negatives have
    another pseudo-label. normalize: the mean runs over the "overlap" (N, the paper) or the "selected"
    positions (released code). valid: (N,) bool, the rows in the overlap (None: all). negative_valid: (M,)
    bool, the rows that are negatives at all (None: all).

    Sums are float32, or float64 for float64 rows and for a temperature below 0.05. Returns zero, with a
    gradient of zero, when nothing is selected. Raises ValueError for another ``normalize``. Several processes
    share the anchors: each returns its part, and their average is the loss of all.

    Scores are made in blocks, which set the peak memory, and once more in the backward pass. On the CPU, rows
    that no mask keeps are never scored.

    DCC's released code scores every position and masks it then (models/model.py 221-235, 257-271), shifts the
    scores by the largest of the first 8,000 negatives (201, 215, 225-226), and adds 1e-8 to quotient and
    logarithm (196, 231, 234), so that no row costs more than 18.4 and one near that learns little. Here the
    shift is the largest of all negatives, found while summing, and no constant is needed.
    """
    if normalize not in ("overlap", "selected"):
        raise ValueError(f"normalize: '{normalize}' is neither overlap nor selected")
    overlap = torch.ones_like(anchor_labels, dtype=torch.bool) if valid is None else valid
    selected = overlap
    if directional:
        selected = selected & (anchor_confidence < positive_confidence)
    if positive_filter:
        selected = selected & (positive_confidence > threshold)
    count = (overlap if normalize == "overlap" else selected).sum()

    losses = RowLosses.apply(
        anchors, positives, temperature, selected,
        anchor_labels if negative_sampling else None, negatives, negative_labels, negative_valid,
    )  # fmt: skip
    return global_mean(losses.sum(), count)


class RowLosses(torch.autograd.Function):
    """The loss of each selected row, −log( r⁺ / (r⁺ + Σ r⁻) ), (N,), and zero for the others.

    The N × M scores are never held together.

    With s⁺ the positive's score and z = log Σ exp s⁻ over the negatives it is log(1 + exp(z − s⁺)), and its
    gradient by the anchor is σ(z − s⁺) (Σ w φ⁻ − φ⁺) / τ, where w = exp(s⁻ − z).
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        temperature: float,
        selected: Tensor,
        labels: Tensor | None,
        negatives: Tensor,
        negative_labels: Tensor,
        negative_valid: Tensor | None,
    ) -> Tensor:
        with torch.autocast(anchors.device.type, enabled=False):
            scaled = anchors.to(_sum_type(anchors, temperature)) / temperature
            pairs = Pairs(scaled, selected, labels, negatives, negative_labels, negative_valid)
            log_sums = directional_blocks.log_sums(pairs)
            gaps = torch.where(selected, log_sums - (scaled * positives).sum(dim=1), -torch.inf)
            losses = torch.logaddexp(gaps, torch.zeros_like(gaps))
        ctx.temperature = temperature
        ctx.save_for_backward(
            anchors, positives, log_sums, gaps, selected, labels, negatives, negative_labels, negative_valid
        )
        return losses.to(torch.promote_types(anchors.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        anchors, positives, log_sums, gaps, selected, *others = ctx.saved_tensors
        with torch.autocast(anchors.device.type, enabled=False):
            scaled = anchors.to(gaps.dtype) / ctx.temperature
            mean = directional_blocks.mean_negatives(Pairs(scaled, selected, *others), log_sums)
        share = gradient * torch.sigmoid(gaps) / ctx.temperature
        by_anchor = torch.where(selected[:, None], share[:, None] * (mean - positives), 0)
        return by_anchor.to(anchors.dtype), *[None] * 7


def _sum_type(anchors: Tensor, temperature: float) -> torch.dtype:
    exact = anchors.dtype == torch.float64 or temperature < COARSEST
    return torch.float64 if exact else torch.float32
