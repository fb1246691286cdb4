"""A network's figures: intersection over union from confusion matrices, and those of FIGURES.

All are integer counts, summed over the images on the device without waiting for it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from semiseg.base.labels import IGNORE

BOUNDARY = 0.02  # share of the image's diagonal: the width of a boundary
BINS = 15  # bins of confidence
UNIT = 2**24  # confidences are summed as integers of 1 / UNIT, so that their order does not matter


class Prediction(NamedTuple):
    """A network's prediction for one image, on the device, with the mask that it is scored against."""

    probabilities: Tensor  # (C, H, W) float32
    labels: Tensor  # (H, W) int64, the class of the highest probability
    mask: Tensor  # (H, W) uint8, 255 where it is not scored


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
    """Return each class's intersection over union, (C,) float64 in [0, 1]; nan for a class in neither.

    ``matrix``: (C, C) counts, rows = target.
    """
    matrix = matrix.double()
    intersection = matrix.diagonal()
    return intersection / (matrix.sum(0) + matrix.sum(1) - intersection)


def mean_iou(matrix: Tensor) -> Tensor:
    """Return the mean over the classes that have an IoU, a float64 scalar in [0, 1]; nan if none has."""
    return iou(matrix).nanmean()


def true_negatives(matrix: Tensor) -> Tensor:
    """Return the share of pixel pairs with different predictions whose targets differ too.

    This is the precision of negatives chosen by prediction (DCC's M_n). A float64 scalar in [0, 1]; nan if
    all predictions are one class. ``matrix``: (C, C) counts, rows = target. Pairs are counted from sums of
    squares: n² − Σ columns² differ in prediction, and Σ rows² − Σ cells² of those agree in target.
    """
    matrix = matrix.double()
    differing = matrix.sum().square() - matrix.sum(0).square().sum()
    false = matrix.sum(1).square().sum() - matrix.square().sum()
    return 1 - false / differing


# --- boundary IoU -------------------------------------------------------------------------------------------


def boundary_confusion(prediction: Prediction) -> Tensor:
    """Count pixels near boundaries by (target, prediction): (C + 1, C + 1) int64, rows = target.

    A pixel that is not near a boundary of its own segment counts as class C. Cheng et al., Boundary IoU,
    CVPR 2021, for all classes at once.
    """
    num_classes, height, width = prediction.probabilities.shape
    distance = max(1, round(BOUNDARY * math.hypot(height, width)))
    mask = prediction.mask.long()
    target = torch.where(near_boundary(mask, distance) | (mask == IGNORE), mask, num_classes)
    labels = torch.where(near_boundary(prediction.labels, distance), prediction.labels, num_classes)
    return confusion_matrix(labels, target, num_classes + 1)


def near_boundary(labels: Tensor, distance: int) -> Tensor:
    """Find pixels with another label, or the edge of the image, within ``distance`` pixels: (H, W) bool.

    Distances are the larger of rows and columns. ``labels``: (H, W) integers from 0 to 255.
    """
    framed = pad(labels[None].float(), (distance,) * 4, value=-1.0)
    side = 2 * distance + 1

    def largest(values: Tensor) -> Tensor:
        return max_pool2d(max_pool2d(values, (1, side), 1), (side, 1), 1)[0]

    return largest(framed) != -largest(-framed)


def boundary_iou(counts: Tensor) -> Tensor:
    """Return the mean of the classes' boundary IoU, a float64 scalar in [0, 1]; nan if no class has one."""
    return iou(counts)[:-1].nanmean()


# --- calibration error --------------------------------------------------------------------------------------


def calibration(prediction: Prediction) -> Tensor:
    """Count pixels, their confidence in 1 / UNIT, and correct ones, by confidence: (3, BINS) int64.

    The confidence is the highest probability; bin b holds confidences in (b / BINS, (b + 1) / BINS].
    """
    confidence = prediction.probabilities.amax(0).double().flatten()
    mask = prediction.mask.flatten()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    bins = torch.where(mask == IGNORE, BINS, bins)  # a bin of its own, which is dropped
    correct = (prediction.labels.flatten() == mask).long()
    rows = torch.stack((torch.ones_like(bins), (confidence * UNIT).round().long(), correct))
    counts = torch.zeros(3, BINS + 1, dtype=torch.int64, device=bins.device)
    return counts.scatter_add_(1, bins.expand(3, -1), rows)[:, :BINS]


def calibration_error(counts: Tensor) -> Tensor:
    """Return the expected calibration error, a float64 scalar in [0, 1]; nan without a pixel.

    The mean over pixels of |accuracy - confidence| of their bin: Guo et al., On Calibration of Modern Neural
    Networks, ICML 2017, equation 3.
    """
    pixels, confidence, correct = counts.double()
    return (correct - confidence / UNIT).abs().sum() / pixels.sum()


# --- the further figures of a record ------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure of a network: a function that counts an image, and one from summed counts to a value."""

    counts: Callable[[Prediction], Tensor]
    value: Callable[[Tensor], Tensor]


# An entry here is in every record that is written from then on; raise REVISION of evaluate.py with it.
FIGURES: Mapping[str, Figure] = {
    "boundary_iou": Figure(boundary_confusion, boundary_iou),
    "calibration_error": Figure(calibration, calibration_error),
}
