"""Intersection over union from integer confusion matrices."""

import torch
from torch import Tensor


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count pixels by (target, prediction): (C, C) int64 on the inputs' device, rows = target.

    ``prediction`` and ``target``: class ids, integers of one shape, in [0, C); pixels whose target is
    ``ignore_index`` are not counted. Never waits for the device. Raises ValueError for shapes that differ or
    values that are no integers, and torch's own index error for a target that no class has.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {list(prediction.shape)} and target {list(target.shape)} differ in shape"
        )
    for values in (prediction, target):
        if values.dtype.is_floating_point or values.dtype.is_complex:
            raise ValueError(f"class ids must be integers, found {values.dtype}")
    target = target.flatten().long()
    cells = 1 + target * num_classes + prediction.flatten().long()
    cells = torch.where(target == ignore_index, 0, cells)  # bin 0 holds what is not counted
    # Not bincount: on a GPU it waits for the largest value to size its output.
    counts = torch.zeros(1 + num_classes**2, dtype=torch.int64, device=target.device)
    counts.scatter_add_(0, cells, torch.ones_like(cells))
    return counts[1:].view(num_classes, num_classes)


def iou(matrix: Tensor) -> Tensor:
    """Each class's intersection over union, (C,) float64 in [0, 1]; nan for a class in neither.

    ``matrix``: (C, C) counts, rows = target.
    """
    matrix = matrix.double()
    intersection = matrix.diagonal()
    return intersection / (matrix.sum(0) + matrix.sum(1) - intersection)


def mean_iou(matrix: Tensor) -> Tensor:
    """The mean over the classes that have an IoU, a float64 scalar in [0, 1]; nan if none has."""
    return iou(matrix).nanmean()


def true_negatives(matrix: Tensor) -> Tensor:
    """Of all pairs of pixels whose predictions differ, the share whose targets differ too.

    What a contrast that takes its negatives by the prediction (DCC's M_n) may hope for. A float64 scalar in
    [0, 1]; nan where all predictions are one class. ``matrix``: (C, C) counts, rows = target. Pairs are
    counted from sums of squares: n² − Σ columns² differ in prediction, Σ rows² − Σ cells² of them not in
    target.
    """
    matrix = matrix.double()
    differing = matrix.sum().square() - matrix.sum(0).square().sum()
    false = matrix.sum(1).square().sum() - matrix.square().sum()
    return 1 - false / differing
