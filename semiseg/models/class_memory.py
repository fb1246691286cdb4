"""A memory of the newest features of each class."""

import torch
from torch import Tensor, nn

from semiseg.base.labels import IGNORE


class ClassMemory(nn.Module):
    """The newest ``per_class`` features of each class, first in first out (CMB, section 3.3).

    Nothing is copied to the host, and every shape is fixed: empty places are labelled 255.
    """

    features: Tensor  # (num_classes, per_class, dim) float32, newest first
    count: Tensor  # (num_classes,) int64, places that are filled

    def __init__(self, num_classes: int, per_class: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(num_classes, per_class, dim))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def add(
        self,
        features: Tensor,
        labels: Tensor,
        scores: Tensor | None = None,
        limit: int | None = None,
        *,
        rank_all: bool = True,
    ) -> None:
        """Put new rows before the old ones of their class, and drop the oldest beyond ``per_class``.

        features: (N, dim). labels: (N,) int; rows outside [0, num_classes) are ignored. scores: (N,), by
        which the rows of a class are ordered, highest first (None: as they come). limit: how many rows a
        class takes at most. Without ``rank_all`` only the classes with more rows than ``limit`` are ordered.
        """
        if features.shape[0] == 0:
            return
        num_classes, per_class, _ = self.features.shape
        most = per_class if limit is None else limit
        labels = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes).long()
        arrived = torch.zeros(num_classes + 1, dtype=torch.int64, device=labels.device)
        arrived = arrived.scatter_add_(0, labels, torch.ones_like(labels))
        if scores is not None:
            if not rank_all:
                scores = torch.where(arrived[labels] > most, scores, 0)
            by_score = scores.argsort(descending=True, stable=True)
            features, labels = features[by_score], labels[by_score]
        by_class = labels.argsort(stable=True)
        arrived = arrived[:num_classes]
        first = arrived.cumsum(0) - arrived  # each class's first place in by_class
        taken = arrived.clamp(max=min(most, per_class))

        place = torch.arange(per_class, device=labels.device)
        row = by_class[(first[:, None] + place).clamp(max=len(labels) - 1)]  # (num_classes, per_class)
        new = features[row].to(self.features.dtype)
        shifted = (place - taken[:, None]).clamp(min=0)
        old = self.features.gather(1, shifted[:, :, None].expand_as(self.features))
        self.features.copy_(torch.where((place < taken[:, None])[:, :, None], new, old))
        self.count.copy_((self.count + taken).clamp(max=per_class))

    def labels(self) -> Tensor:
        """Return the class of each place, (num_classes, per_class) int64, 255 where it is empty."""
        num_classes, per_class, _ = self.features.shape
        classes = torch.arange(num_classes, device=self.count.device)[:, None]
        filled = torch.arange(per_class, device=self.count.device) < self.count[:, None]
        return torch.where(filled, classes, IGNORE)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return the filled places, features (M, dim) and labels (M,), by class, newest first.

        M depends on the contents, so this waits for the device; a training step reads ``features`` and
        ``labels()`` instead.
        """
        labels = self.labels()
        filled = labels != IGNORE
        return self.features[filled], labels[filled]
