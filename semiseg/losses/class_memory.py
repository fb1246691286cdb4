"""The contrast of pixels with a class-wise memory."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from semiseg.base.distributed import summed

CHUNK = 4096  # rows that are in double precision at a time


def class_memory_loss(
    predictions: Tensor,
    labels: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    prediction_scores: Tensor,
    memory_scores: Tensor,
    num_classes: int,
    least: int = 1,
) -> Tensor:
    """Return the attention-weighted cosine distance of each class's pixels to its memory (CMB, L_contr).

    predictions: (N, D); labels: (N,) int; memory: (M, D); memory_labels: (M,) int; prediction_scores: (N,);
    memory_scores: (M,), both the sigmoid outputs in (0, 1). Rows whose label is outside [0, num_classes)
    are ignored. Returns a scalar in [0, 2].

    With w_i = s_i / mean(s) and v_j = t_j / mean(t) within a class c, the paper's mean over all pairs of
    w_i v_j (1 − cos(p_i, z_j)) is 1 − ⟨Σ s_i p̂_i / Σ s_i, Σ t_j ẑ_j / Σ t_j⟩, for the weights have mean
    one: two segment sums instead of an N × M matrix. The sum over the classes is divided by num_classes;
    a class with fewer than ``least`` rows on either side adds zero. Several processes share the rows of both
    sides: each returns the loss of all.
    """
    centre, count = _class_centres(predictions, labels, prediction_scores, num_classes)
    memory_centre, memory_count = _class_centres(memory, memory_labels, memory_scores, num_classes)
    distance = 1 - (centre * memory_centre).sum(dim=1)
    enough = (count >= least) & (memory_count >= least)
    loss = torch.where(enough, distance, 0).sum() / num_classes
    return loss.to(torch.promote_types(predictions.dtype, torch.float32))


def _class_centres(rows: Tensor, labels: Tensor, scores: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return Σ s x̂ / Σ s of each class's rows, (num_classes, D), and their number, both float64.

    Chunks are computed again in the backward pass, so that no second copy of the rows is held.
    """
    sums = torch.zeros(num_classes, rows.shape[1], dtype=torch.float64, device=rows.device)
    total, count = sums.new_zeros(num_classes), sums.new_zeros(num_classes)
    for chunk in zip(*(each.split(CHUNK) for each in (rows, labels, scores)), strict=True):
        parts = checkpoint(_segment_sums, *chunk, num_classes, use_reentrant=False, preserve_rng_state=False)
        sums, total, count = sums + parts[0], total + parts[1], count + parts[2]
    sums, total, count = summed(torch.cat((sums, total[:, None], count[:, None]), dim=1)).split(
        (rows.shape[1], 1, 1), dim=1
    )
    return sums / torch.where(total > 0, total, 1), count[:, 0]


def _segment_sums(
    rows: Tensor, labels: Tensor, scores: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ s x̂, Σ s and the number of each class's rows.

    Sums are float64: one minus a cosine loses digits where the features agree, and TF32 and autocast would
    cost more of them.
    """
    rows, scores = rows.double(), scores.double()
    classes = torch.arange(num_classes, device=labels.device)
    member = classes[:, None] == labels[None, :]  # (num_classes, N)
    mass = torch.where(member, scores, 0)
    norms = torch.linalg.vector_norm(rows, dim=1).clamp(min=1e-12)
    return (mass / norms) @ rows, mass.sum(dim=1), member.sum(dim=1).double()
