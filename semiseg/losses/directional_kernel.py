"""The directional contrast's sums over the negatives on a GPU, where only the device knows how many rows are
selected.

The selected rows are put first there, in fixed shapes, and a kernel is launched for all N rows; a program
whose rows come after the selected ones returns at once. So no other row is scored, and nothing is waited for.

Triton's interpreter tests the arithmetic on the CPU, in float32 and float64; the kernel has been compiled,
but not run, for compute capabilities 7.5 to 12.0. Triton compiles it at the first step that needs it, in some
seconds, with a C compiler.
"""

from typing import Any

import torch
from torch import Tensor

from semiseg.base.errors import UserError
from semiseg.losses.directional_blocks import Pairs

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    raise UserError(
        "triton is not installed, and DCC's loss on a GPU is written in it: pip install triton"
    ) from error

# Work of a program, small enough for registers: anchors, negatives at a time, dimensions read at a time, and
# the most dimensions of the mean; wider rows take more programs.
ROWS, COLUMNS, STEP, WIDTH = 64, 32, 32, 128


def log_sums(pairs: Pairs) -> Tensor:
    """Return z = log Σ exp s⁻ over each selected anchor's negatives, (N,); −∞ without one or not selected."""
    found = pairs.anchors.new_full((len(pairs.anchors),), -torch.inf)
    _launch(log_sums_kernel, pairs, (found,), (triton.cdiv(len(found), ROWS),), {})
    return found


def mean_negatives(pairs: Pairs, log_sums: Tensor) -> Tensor:
    """Return Σ w φ⁻ with w = exp(s⁻ − z) over each selected anchor's negatives, (N, D); zero for the others.

    log_sums: z, (N,), of the same ``pairs``; the scores are made once more.
    """
    means = torch.zeros_like(pairs.anchors, memory_format=torch.contiguous_format)
    rows, dim = means.shape
    width = min(WIDTH, max(16, triton.next_power_of_2(dim)))
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(dim, width))
    _launch(mean_negatives_kernel, pairs, (log_sums, means), grid, {"WIDTH": width})
    return means


def _launch(
    kernel: Any, pairs: Pairs, tensors: tuple[Tensor, ...], grid: tuple[int, ...], constants: dict[str, int]
) -> None:
    order = pairs.selected.logical_not().byte().argsort(stable=True)  # the selected rows first
    read = (
        pairs.anchors, order, pairs.selected.sum(), pairs.labels,
        pairs.negatives, pairs.negative_labels, pairs.negative_valid,
    )  # fmt: skip
    with torch.cuda.device_of(pairs.anchors):
        kernel[grid](
            *(each if each is None else each.contiguous() for each in read), *tensors,
            len(pairs.negatives), pairs.anchors.shape[1],
            ROWS=ROWS, COLUMNS=COLUMNS, STEP=STEP, **constants,
            num_warps=8, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip


@triton.jit
def log_sums_kernel(  # type: ignore[no-untyped-def]
    anchors,  # (N, D) over τ, in the type of the sums
    order,  # (N,) int64, the selected rows first
    count,  # (), their number
    labels,
    negatives,
    negative_labels,
    negative_valid,
    found,  # (N,)
    num_negatives,
    DIM: tl.constexpr,
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

    largest = tl.full((ROWS,), float("-inf"), anchors.dtype.element_ty)
    total = tl.zeros((ROWS,), anchors.dtype.element_ty)
    for start in range(0, num_negatives, COLUMNS):
        columns = start + tl.arange(0, COLUMNS).to(tl.int64)
        scores = _scores(
            anchors, rows, live, labels, negatives, negative_labels, negative_valid,
            columns, num_negatives, DIM, ROWS, COLUMNS, STEP,
        )  # fmt: skip
        rising = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(rising == float("-inf"), 0.0, rising)  # −∞ − −∞ would not be a number
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(scores - shift[:, None]), 1)
        largest = rising
    tl.store(found + rows, largest + tl.log(total), mask=live)


@triton.jit
def mean_negatives_kernel(  # type: ignore[no-untyped-def]
    anchors,
    order,
    count,
    labels,
    negatives,
    negative_labels,
    negative_valid,
    log_sums,  # (N,)
    means,  # (N, D)
    num_negatives,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    WIDTH: tl.constexpr,  # dimensions of the mean that a program makes
):
    place = tl.program_id(0) * ROWS
    selected = tl.load(count)
    if place >= selected:
        return
    places = place + tl.arange(0, ROWS)
    live = places < selected
    rows = tl.load(order + places, mask=live, other=0)
    part = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    log_sum = tl.load(log_sums + rows, mask=live, other=0.0)
    shift = tl.where(log_sum == float("-inf"), 0.0, log_sum)

    total = tl.zeros((ROWS,), anchors.dtype.element_ty)
    mean = tl.zeros((ROWS, WIDTH), anchors.dtype.element_ty)
    for start in range(0, num_negatives, COLUMNS):
        columns = start + tl.arange(0, COLUMNS).to(tl.int64)
        scores = _scores(
            anchors, rows, live, labels, negatives, negative_labels, negative_valid,
            columns, num_negatives, DIM, ROWS, COLUMNS, STEP,
        )  # fmt: skip
        weights = tl.exp(scores - shift[:, None])
        total += tl.sum(weights, 1)
        counted = _counted(negative_valid, columns, num_negatives)
        feature = _block(negatives, columns, counted, part, DIM).to(weights.dtype)
        # Not mean + …: Triton would add it in a tensor core, which cuts digits off the sum.
        mean = tl.fma(mean, tl.full((ROWS, WIDTH), 1.0, mean.dtype), _product(weights, feature))
    # Σ w is one; dividing by it removes the rounding of z.
    mean = mean / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(means + rows[:, None] * DIM + part[None, :], mean, mask=live[:, None] & (part < DIM)[None, :])


@triton.jit
def _scores(  # type: ignore[no-untyped-def]
    anchors,
    rows,
    live,
    labels,
    negatives,
    negative_labels,
    negative_valid,
    columns,
    num_negatives,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Return scores (ROWS, COLUMNS), −∞ where a column is none of a row's negatives."""
    pairs = _counted(negative_valid, columns, num_negatives)
    scores = tl.zeros((ROWS, COLUMNS), anchors.dtype.element_ty)
    for first in range(0, DIM, STEP):
        dims = first + tl.arange(0, STEP)
        anchor = _block(anchors, rows, live, dims, DIM)
        feature = _block(negatives, columns, pairs, dims, DIM).to(anchor.dtype)
        scores += _product(anchor, tl.trans(feature))
    counted = live[:, None] & pairs[None, :]
    if labels is not None:
        own = tl.load(labels + rows, mask=live, other=0)
        others = tl.load(negative_labels + columns, mask=pairs, other=0)
        counted = counted & (own[:, None] != others[None, :])
    return tl.where(counted, scores, float("-inf"))


@triton.jit
def _counted(negative_valid, columns, num_negatives):  # type: ignore[no-untyped-def]
    """Return the columns that are negatives at all."""
    counted = columns < num_negatives
    if negative_valid is not None:
        counted = counted & tl.load(negative_valid + columns, mask=counted, other=0).to(tl.int1)
    return counted


@triton.jit
def _product(one, other):  # type: ignore[no-untyped-def]
    """Multiply by three products of TF32, which keep a float32's digits; one would not."""
    if one.dtype == tl.float32:
        return tl.dot(one, other, input_precision="tf32x3")
    return tl.dot(one, other, input_precision="ieee", out_dtype=one.dtype)


@triton.jit
def _block(features, rows, live, dims, DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load features[rows, dims], zero where a row is not live or a dimension not below DIM."""
    mask = live[:, None] & (dims < DIM)[None, :]
    return tl.load(features + rows[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
