"""Self-supervised losses on two views of each image.

Features are normalised here, in float32 or their own float64. Several processes share the batch: each returns
its part, and their average is the batch's.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from semiseg.base import distributed


def nt_xent_loss(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Return SimCLR's loss (Chen et al., ICML 2020, equation 1) of the two views' features, both (B, D).

    The other view of an image is the positive, both views of all other images of the batch are negatives.
    """
    images, device = len(first), first.device
    with torch.autocast(device.type, enabled=False):
        own = torch.cat((_unit(first), _unit(second)))
        every = torch.cat([distributed.joined_rows(view) for view in own.chunk(2)])
        total = len(every) // 2
        place = torch.arange(images, device=device) + distributed.rank() * images
        itself, positive = torch.cat((place, place + total)), torch.cat((place + total, place))
        logits = (own @ every.T / temperature).scatter(1, itself[:, None], -torch.inf)
        return cross_entropy(logits, positive)


def info_nce_loss(
    queries: Tensor, keys: Tensor, negatives: Tensor, *, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """Return the mean InfoNCE (He et al., CVPR 2020, equation 1) of queries (N, D) with keys (N, D).

    negatives: (K, D), rows of norm one; keys and negatives take no gradient. counted: (N,) bool, the queries
    that have a key; by default all. Zero without one.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries = _unit(queries)
        positive = (queries * _unit(keys.detach())).sum(dim=1, keepdim=True)
        logits = torch.cat((positive, queries @ negatives.to(queries.dtype).T), dim=1) / temperature
        costs = logits.logsumexp(dim=1) - logits[:, 0]
    if counted is None:
        counted = torch.ones_like(costs, dtype=torch.bool)
    return distributed.global_mean(torch.where(counted, costs, 0).sum(), counted.sum())


def negative_cosine_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return minus the mean cosine of predictions and targets, both (B, D); targets take no gradient."""
    return -(_unit(predictions) * _unit(targets.detach())).sum(dim=1).mean()


def pixel_consistency_loss(predictions: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
    """Return minus the mean cosine of positive pairs of pixels, averaged over images (PixPro, equation 6).

    predictions, targets: (B, D, P), the pixels of each view; positive: (B, P, P) bool, for a pixel of the
    predictions (rows) and one of the targets. Targets take no gradient. An image without a pair counts as
    zero.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        cosines = _unit(predictions).mT @ _unit(targets.detach())
    pairs = positive.sum(dim=(1, 2))
    return -(torch.where(positive, cosines, 0).sum(dim=(1, 2)) / pairs.clamp(min=1)).mean()


def _unit(features: Tensor) -> Tensor:
    """Normalise features (N, D, ...) along D."""
    return normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
