"""The directional contrast's sums over the negatives, in blocks that set the peak memory.

The CPU scores the selected anchors alone. A GPU scores all of them, for the host would wait for the number of
selected ones, and in larger blocks, for the host launches each operation.

The scores are computed again in the backward pass, and two numbers a row are kept between the passes. A form
that computed the gradient along with the loss kept N x D numbers and took 0.65 of the time (N = 6,400,
M = 25,600, one CPU thread: 1.10 s against 1.69 s).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SIDE = 2**10  # anchors, and negatives, of a block of scores on the CPU
ON_A_GPU = 2**25  # scores of a block on a GPU, 128 MiB in float32


class Pairs(NamedTuple):
    """Anchors and the negatives that they are scored against."""

    anchors: Tensor  # (N, D) over τ, float32 or float64, the type of the sums
    selected: Tensor  # (N,) bool, the anchors that are scored at all
    labels: Tensor | None  # (N,) int; None: negatives of the anchor's own label count too
    negatives: Tensor  # (M, D) of any floating type
    negative_labels: Tensor  # (M,) int
    negative_valid: Tensor | None  # (M,) bool, the rows that are negatives; None: all


def log_sums(pairs: Pairs) -> Tensor:
    """Return z = log Σ exp s⁻ over each selected anchor's negatives, (N,), and −∞ where it has none.

    What stands in the places of the other anchors has no meaning. The maximum runs along with the sum, which
    is rescaled when it rises.
    """
    found = pairs.anchors.new_full((len(pairs.anchors),), -torch.inf)
    for rows in _anchors(pairs):
        largest = found[rows]
        total = torch.zeros_like(largest)
        for scores, _ in _blocks(pairs, rows):
            rising = torch.maximum(largest, scores.amax(dim=1))
            shift = _finite(rising)
            total.mul_((largest - shift).exp_()).add_(scores.sub_(shift[:, None]).exp_().sum(dim=1))
            largest = rising
        found[rows] = largest + total.log()
    return found


def mean_negatives(pairs: Pairs, log_sums: Tensor) -> Tensor:
    """Return Σ w φ⁻ with w = exp(s⁻ − z) over each selected anchor's negatives, (N, D).

    log_sums: z, (N,), of the same ``pairs``. What stands in the places of the other anchors has no meaning.
    The scores are computed again; dividing by Σ w, which is one, removes z's rounding.
    """
    means = torch.zeros_like(pairs.anchors)
    for rows in _anchors(pairs):
        shift = _finite(log_sums[rows])[:, None]
        mean = torch.zeros_like(pairs.anchors[rows])
        total = torch.zeros_like(shift)
        for scores, negatives in _blocks(pairs, rows):
            weights = scores.sub_(shift).exp_()
            total.add_(weights.sum(dim=1, keepdim=True))
            mean.addmm_(weights, negatives)
        means[rows] = mean / torch.where(total > 0, total, 1)
    return means


def _all_at_once(pairs: Pairs) -> bool:
    return pairs.anchors.is_cuda


def _anchors(pairs: Pairs) -> Sequence[Tensor | slice]:
    """Return the places of the anchors that are scored, in blocks."""
    if _all_at_once(pairs):
        return (slice(None),)
    return pairs.selected.nonzero()[:, 0].split(SIDE)


def _blocks(pairs: Pairs, rows: Tensor | slice) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the scores of ``rows`` against a block of negatives, −∞ for those not a row's, and the block."""
    anchors = pairs.anchors[rows]
    width = max(1, ON_A_GPU // max(1, len(anchors))) if _all_at_once(pairs) else SIDE
    for start in range(0, len(pairs.negatives), width):
        block = slice(start, start + width)
        negatives = pairs.negatives[block].to(anchors.dtype)
        scores = anchors @ negatives.T
        if pairs.labels is not None:
            scores.masked_fill_(pairs.labels[rows][:, None] == pairs.negative_labels[block], -torch.inf)
        if pairs.negative_valid is not None:
            scores.masked_fill_(~pairs.negative_valid[block], -torch.inf)
        yield scores, negatives


def _finite(largest: Tensor) -> Tensor:
    """Return what is subtracted from the scores; −∞ − −∞ would not be a number."""
    return largest.clamp(min=torch.finfo(largest.dtype).min)
