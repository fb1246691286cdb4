"""Cross-entropy of the hard pixels of each image (online hard example mining)."""

import torch
from torch import Tensor

from semiseg.base.labels import IGNORE
from semiseg.losses.supervised import cross_entropy


def hard_cross_entropy(logits: Tensor, labels: Tensor, *, pixels: int, threshold: float) -> Tensor:
    """Return the mean cross-entropy of the pixels that are hard, of all images together.

    logits: (B, C, H, W); labels: (B, H, W) int64, class ids and 255. A pixel is hard if the probability of
    its label is at most ``threshold``, in [0, 1], or among the ``pixels`` lowest of its image; of fewer
    labelled pixels all are. Several processes share the batch: each returns its part, and their average is
    the batch's.

    As in TorchSemiSeg (furnace/seg_opr/loss_opr.py, ProbOhemCrossEntropy2d), but for each image, so that the
    number of processes does not matter. UniMatch keeps at least 200,000 pixels of the two images on a GPU
    (util/ohem.py 28-57) and takes the mean of each GPU's means.
    """
    with torch.no_grad():
        labelled = labels != IGNORE
        classes = torch.where(labelled, labels, 0).unsqueeze(1)
        found = logits.softmax(dim=1).gather(1, classes)[:, 0]
        found = torch.where(labelled, found, 1).flatten(1)
        lowest = found.kthvalue(min(pixels, found.shape[1]), dim=1, keepdim=True).values
        hard = (found <= lowest.clamp(min=threshold)).view_as(labels)
    return cross_entropy(logits, torch.where(hard, labels, IGNORE))
