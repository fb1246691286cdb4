"""The directional contrast on a GPU, where only the device knows how many rows are selected.

The selected rows are put first there, in fixed shapes, and the kernel is launched for all N rows; a program
whose rows come after the selected ones returns at once. So no other row is scored, and nothing is waited for.
"""

import torch
from torch import Tensor

from semiseg.errors import UserError

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    raise UserError(
        "triton is not installed, and DCC's loss on a GPU is written in it: pip install triton"
    ) from error

# What a program works on, small enough for registers: anchors, negatives at a time, dimensions read at a
# time, and at most so many dimensions of the gradients; for wider rows there are more programs.
ROWS, COLUMNS, STEP, WIDTH = 64, 32, 32, 128


def gaps_and_gradients(
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
    """z − s⁺ of each selected row, (N,) float32, −∞ for the others; its loss's gradient by the anchor, (N, D)
    float32, zero for the others, or None without ``with_gradient``.

    anchors, positives: (N, D) and negatives: (M, D), of any floating type; selected: (N,) bool; labels:
    (N,) int or None; negative_labels: (M,) int; negative_valid: (M,) bool or None. semiseg.losses.directional
    explains the symbols. The peak memory is the gradients'.
    """
    rows, dim = anchors.shape
    order = selected.logical_not().byte().argsort(stable=True)  # the selected rows first
    read = (anchors, positives, negatives, order, selected.sum(), labels, negative_labels, negative_valid)
    gaps = torch.full((rows,), -torch.inf, device=anchors.device)
    gradients = torch.zeros((rows, dim), device=anchors.device) if with_gradient else None
    width = min(WIDTH, max(16, triton.next_power_of_2(dim)))
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(dim, width) if with_gradient else 1)
    with torch.cuda.device_of(anchors):
        _contrast[grid](
            *(each if each is None else each.contiguous() for each in read), gaps, gradients,
            len(negatives), 1 / temperature, dim, width, ROWS, COLUMNS, STEP,
            num_warps=8, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
    return gaps, gradients


@triton.jit
def _contrast(  # type: ignore[no-untyped-def]
    anchors,
    positives,
    negatives,
    order,  # (N,) int64, the selected rows first
    count,  # (), how many they are
    labels,
    negative_labels,
    negative_valid,
    gaps,
    gradients,
    num_negatives,
    sharpness,  # 1 / τ
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # dimensions of the gradient that a program makes
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,  # dimensions that are read at a time
):
    place = tl.program_id(0) * ROWS
    selected = tl.load(count)
    if place >= selected:
        return
    places = place + tl.arange(0, ROWS)
    live = places < selected
    rows = tl.load(order + places, mask=live, other=0)
    steps = tl.arange(0, STEP)
    part = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    if labels is not None:
        own = tl.load(labels + rows, mask=live, other=0)

    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mean = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, num_negatives, COLUMNS):
        columns = start + tl.arange(0, COLUMNS).to(tl.int64)
        counted = columns < num_negatives
        if negative_valid is not None:
            counted = counted & tl.load(negative_valid + columns, mask=counted, other=0).to(tl.int1)
        scores = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, DIM, STEP):
            dims = first + steps
            anchor = _block(anchors, rows, live, dims, DIM)
            feature = _block(negatives, columns, counted, dims, DIM)
            # Three products of TF32 keep a float32's digits; one would not.
            scores = tl.dot(anchor, tl.trans(feature), scores, input_precision="tf32x3")
        pairs = counted[None, :]
        if labels is not None:
            others = tl.load(negative_labels + columns, mask=counted, other=0)
            pairs = pairs & (own[:, None] != others[None, :])
        scores = tl.where(pairs, scores * sharpness, float("-inf"))
        rising = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(rising == float("-inf"), 0.0, rising)  # −∞ − −∞ would not be a number
        weights = tl.exp(scores - shift[:, None])
        kept = tl.exp(largest - shift)
        total = total * kept + tl.sum(weights, 1)
        if gradients is not None:
            # A sum of its own, added in float32: tensor cores cut digits off what they add to.
            feature = _block(negatives, columns, counted, part, DIM)
            mean = tl.fma(mean, kept[:, None], tl.dot(weights, feature, input_precision="tf32x3"))
        largest = rising

    positive = tl.zeros((ROWS,), tl.float32)
    for first in range(0, DIM, STEP):
        dims = first + steps
        anchor = _block(anchors, rows, live, dims, DIM)
        positive += tl.sum(anchor * _block(positives, rows, live, dims, DIM), 1)
    gap = largest + tl.log(total) - positive * sharpness
    if tl.program_id(1) == 0:
        tl.store(gaps + rows, gap, mask=live)
    if gradients is not None:
        share = sharpness / (1 + tl.exp(-gap))  # σ(z − s⁺) / τ
        mean = mean / tl.where(total > 0, total, 1.0)[:, None]
        gradient = share[:, None] * (mean - _block(positives, rows, live, part, DIM))
        tl.store(
            gradients + rows[:, None] * DIM + part[None, :], gradient,
            mask=live[:, None] & (part < DIM)[None, :],
        )  # fmt: skip


@triton.jit
def _block(features, rows, live, dims, DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    """features[rows, dims] as float32, zero where a row is not live or a dimension not below DIM."""
    mask = live[:, None] & (dims < DIM)[None, :]
    return tl.load(features + rows[:, None] * DIM + dims[None, :], mask=mask, other=0.0).to(tl.float32)
