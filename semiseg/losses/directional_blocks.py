"""The directional contrast's sums over the negatives on the CPU, in blocks of plain torch.

Shapes depend on which rows are selected: a GPU would have to wait for them, so it has a kernel of its own.

The scores are computed again in the backward pass, and two numbers a row are kept between the passes. A form
that computed the gradient along with the loss kept N x D numbers and took 0.65 of the time (N = 6,400,
M = 25,600, one CPU thread: 1.10 s against 1.69 s).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SIDE = 2**10  # anchors, and negatives, of a block of scores


class Pairs(NamedTuple):
    """Anchors and the negatives that they are scored against."""

    anchors: Tensor  # (N, D) over τ, float32 or float64, the type of the sums
    selected: Tensor  # (N,) bool, the anchors that are scored at all
    labels: Tensor | None  # (N,) int; None: negatives of the anchor's own label count too
    negatives: Tensor  # (M, D) of any floating type
    negative_labels: Tensor  # (M,) int
    negative_valid: Tensor | None  # (M,) bool, the rows that are negatives; None: all


def log_sums(pairs: Pairs) -> Tensor:
    """Return z = log Σ exp s⁻ over each selected anchor's negatives, (N,); −∞ without one or not selected.

    The maximum runs along with the sum, which is rescaled when it rises.
    """
    found = pairs.anchors.new_full((len(pairs.anchors),), -torch.inf)
    for rows in _selected(pairs):
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
    """Return Σ w φ⁻ with w = exp(s⁻ − z) over each selected anchor's negatives, (N, D); zero for the others.

    log_sums: z, (N,), of the same ``pairs``. The scores are computed again; dividing by Σ w, which is one,
    removes z's rounding.
    """
    means = torch.zeros_like(pairs.anchors)
    for rows in _selected(pairs):
        shift = _finite(log_sums[rows])[:, None]
        mean = torch.zeros_like(pairs.anchors[rows])
        total = torch.zeros_like(shift)
        for scores, negatives in _blocks(pairs, rows):
            weights = scores.sub_(shift).exp_()
            total.add_(weights.sum(dim=1, keepdim=True))
            mean.addmm_(weights, negatives)
        means[rows] = mean / torch.where(total > 0, total, 1)
    return means


def _selected(pairs: Pairs) -> tuple[Tensor, ...]:
    """Return the places of the selected anchors, int64, in blocks."""
    return pairs.selected.nonzero()[:, 0].split(SIDE)


def _blocks(pairs: Pairs, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the scores of ``rows`` against a block of negatives, −∞ for those not a row's, and the block."""
    anchors = pairs.anchors[rows]
    for start in range(0, len(pairs.negatives), SIDE):
        block = slice(start, start + SIDE)
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
