"""The directional contrast of pixels seen in two contexts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from semiseg.distributed import global_mean

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
    """One direction of DCC's loss (Lai et al., CVPR 2021, section 3.3), a scalar:

    −(1/N) Σ M_d,pf · log( r(φ1, φ2) / ( r(φ1, φ2) + Σ_n M_n · r(φ1, φ_n) ) ),  r = exp(cos / τ).

    anchors φ1 and positives φ2: (N, D); anchor_confidence, positive_confidence: (N,) in [0, 1];
    anchor_labels: (N,) int, pseudo-labels; negatives: (M, D); negative_labels: (M,) int. Rows of features are
    L2-normalised already. Only the anchors take a gradient.

    directional: M_d, an anchor learns only where it is the less confident of the two. positive_filter: M_pf,
    only towards a confidence above ``threshold``. negative_sampling: M_n, negatives are those of another
    pseudo-label. normalize: the mean runs over the "overlap" (N, the paper) or over the "selected" positions
    (released code). valid: (N,) bool, the rows that are positions of the overlap (None: all);
    negative_valid: (M,) bool, the rows that are negatives at all (None: all).

    Sums are float32, or float64 for float64 rows and for a temperature below 0.05. Returns zero, with a
    gradient of zero, when nothing is selected. Raises ValueError for another ``normalize``, and on a GPU
    UserError without triton. Several processes share the anchors: each returns its part, and their average is
    the loss of all.

    Scores are made in blocks, which set the peak memory; rows that no mask keeps are never scored. How many
    are kept only a GPU itself knows, and nothing waits for it: a kernel selects them there. The kernel's sums
    are float32; where they must be float64, a GPU scores every row in fixed shapes.
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

    losses = _RowLosses.apply(
        anchors, positives, negatives, temperature, selected,
        anchor_labels if negative_sampling else None, negative_labels, negative_valid,
    )  # fmt: skip
    return global_mean(losses.sum(), count)


class _RowLosses(torch.autograd.Function):
    """Each selected row's −log( r⁺ / (r⁺ + Σ r⁻) ), (N,), zero for the others, without the N × M scores.

    With s⁺ the positive's score and z = log Σ exp s⁻ over the negatives it is log(1 + exp(z − s⁺)), and its
    gradient by the anchor is σ(z − s⁺) (Σ w φ⁻ − φ⁺) / τ, where w = exp(s⁻ − z). The weighted mean of the
    negatives runs along with the log-sum-exp over the same blocks, rescaled when the maximum rises: it takes
    as much memory as the anchors, and saves the backward pass from making the scores a second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        negatives: Tensor,
        temperature: float,
        selected: Tensor,
        labels: Tensor | None,
        negative_labels: Tensor,
        negative_valid: Tensor | None,
    ) -> Tensor:
        with torch.autocast(anchors.device.type, enabled=False):
            gaps, gradients = _scorer(anchors, temperature)(
                anchors, positives, negatives, temperature, selected,
                labels, negative_labels, negative_valid, ctx.needs_input_grad[0],
            )  # fmt: skip
            losses = torch.logaddexp(gaps, torch.zeros_like(gaps))
        if gradients is not None:
            ctx.save_for_backward(gradients)
            ctx.dtype = anchors.dtype
        return losses.to(torch.promote_types(anchors.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradient[:, None] * gradients).to(ctx.dtype), *[None] * 7


def _scorer(anchors: Tensor, temperature: float) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What makes z − s⁺ and the gradients: the kernel for float32 sums on a GPU, else blocks in torch."""
    if anchors.is_cuda and _sum_type(anchors, temperature) == torch.float32:
        from semiseg.losses.directional_kernel import gaps_and_gradients  # needs triton

        return gaps_and_gradients
    return _gaps_and_gradients


def _sum_type(anchors: Tensor, temperature: float) -> torch.dtype:
    exact = anchors.dtype == torch.float64 or temperature < COARSEST
    return torch.float64 if exact else torch.float32


def _side(device: torch.device) -> int:
    """Rows, and negatives, of a block of scores."""
    return 2**10 if device.type == "cpu" else 2**12


def _gaps_and_gradients(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float,
    selected: Tensor,
    labels: Tensor | None,
    negative_labels: Tensor,
    negative_valid: Tensor | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """z − s⁺ of each selected row, (N,), −∞ for the others; its loss's gradient by the anchor, (N, D), zero
    for the others, or None without ``with_gradient``."""
    dtype, side = _sum_type(anchors, temperature), _side(anchors.device)
    gaps = torch.full((len(anchors),), -torch.inf, dtype=dtype, device=anchors.device)
    gradients = torch.zeros_like(anchors, dtype=dtype) if with_gradient else None
    for block in _scored(selected).split(side):
        scaled = anchors[block].to(dtype) / temperature
        towards = positives[block].to(dtype)
        log_sum, mean = _over_negatives(
            scaled, negatives, side, None if labels is None else labels[block],
            negative_labels, negative_valid, with_gradient,
        )  # fmt: skip
        gap = log_sum - (scaled * towards).sum(dim=1)
        gaps[block] = gap
        if gradients is not None:
            gradients[block] = torch.sigmoid(gap)[:, None] * (mean - towards) / temperature
    if gradients is not None:
        gradients.masked_fill_(~selected[:, None], 0)
    return gaps.masked_fill_(~selected, -torch.inf), gradients


def _scored(selected: Tensor) -> Tensor:
    """The rows to score, int64: the selected ones on the CPU; elsewhere all, and no count is waited for."""
    if selected.device.type == "cpu":
        return selected.nonzero()[:, 0]
    return torch.arange(len(selected), device=selected.device)


def _over_negatives(
    scaled: Tensor,
    negatives: Tensor,
    side: int,
    labels: Tensor | None,
    negative_labels: Tensor,
    negative_valid: Tensor | None,
    with_mean: bool,
) -> tuple[Tensor, Tensor]:
    """log Σ exp of each row's scores, (rows,), −∞ without a negative; and the mean negative, (rows, D).

    scaled: (rows, D), anchors / τ; labels: (rows,), None where negatives of the same label count too.
    """
    largest = scaled.new_full((len(scaled),), -torch.inf)
    total = torch.zeros_like(largest)
    mean = torch.zeros_like(scaled)
    for start in range(0, len(negatives), side):
        block = slice(start, start + side)
        features = negatives[block].to(scaled.dtype)
        scores = scaled @ features.T
        if labels is not None:
            scores.masked_fill_(labels[:, None] == negative_labels[block], -torch.inf)
        if negative_valid is not None:
            scores.masked_fill_(~negative_valid[block], -torch.inf)
        rising = torch.maximum(largest, scores.amax(dim=1))
        shift = rising.clamp(min=torch.finfo(rising.dtype).min)  # −∞ − −∞ would not be a number
        scores.sub_(shift[:, None]).exp_()
        kept = (largest - shift).exp_()
        total.mul_(kept).add_(scores.sum(dim=1))
        if with_mean:
            mean.mul_(kept[:, None]).addmm_(scores, features)
        largest = rising
    return largest + total.log(), mean / torch.where(total > 0, total, 1)[:, None]
