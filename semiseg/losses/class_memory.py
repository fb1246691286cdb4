"""The contrast of pixels with a class-wise memory."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from semiseg.base.distributed import summed

CHUNK = 2**24  # numbers of the rows that are in double precision at a time: 128 MiB


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

    Rows of more than CHUNK numbers are taken in chunks, which are computed again in the backward pass, so
    that no second copy of all of them is held.
    """
    side = (rows, labels, scores)
    if rows.numel() <= CHUNK:
        sums = _segment_sums(*side, num_classes)
    else:
        chunks = zip(*(each.split(CHUNK // rows.shape[1]) for each in side), strict=True)
        again = partial(checkpoint, _segment_sums, use_reentrant=False, preserve_rng_state=False)
        sums = torch.stack([again(*chunk, num_classes) for chunk in chunks]).sum(dim=0)
    features, total, count = summed(sums).split((rows.shape[1], 1, 1), dim=1)
    return features / torch.where(total > 0, total, 1), count[:, 0]


def _segment_sums(rows: Tensor, labels: Tensor, scores: Tensor, num_classes: int) -> Tensor:
    """Return Σ s x̂, Σ s and the number of each class's rows: (num_classes, D + 2).

    Sums are float64: one minus a cosine loses digits where the features agree, and TF32 and autocast would
    cost more of them.
    """
    rows, scores = rows.double(), scores.double()
    classes = torch.arange(num_classes, device=labels.device)
    member = classes[:, None] == labels[None, :]  # (num_classes, N)
    mass = torch.where(member, scores, 0)
    norms = torch.linalg.vector_norm(rows, dim=1).clamp(min=1e-12)
    count = member.sum(dim=1, keepdim=True).double()
    return torch.cat(((mass / norms) @ rows, mass.sum(dim=1, keepdim=True), count), dim=1)
