"""A first-in-first-out queue of features for each class."""

import torch
from torch import Tensor, nn


class ClassQueues(nn.Module):
    """The newest ``length`` features of each class, in no order (U2PL's memory bank).

    Nothing is copied to the host, every shape is fixed, and adding rows touches only the places they take.
    """

    features: Tensor  # (num_classes, length, dim) float32
    count: Tensor  # (num_classes,) int64, places that are filled
    oldest: Tensor  # (num_classes,) int64, the place that is written next

    def __init__(self, num_classes: int, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(num_classes, length, dim))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("oldest", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, features: Tensor, number: Tensor) -> None:
        """Put the first ``number`` rows of each class in place of its oldest.

        features: (num_classes, rows, dim), at most ``length`` rows; number: (num_classes,) int64.
        """
        num_classes, length, dim = self.features.shape
        row = torch.arange(features.shape[1], device=number.device)
        place = (self.oldest[:, None] + row) % length
        place = (place + length * torch.arange(num_classes, device=number.device)[:, None]).flatten()
        held = self.features.view(-1, dim)
        entering = (row < number[:, None]).flatten()[:, None]
        rows = torch.where(entering, features.reshape(-1, dim).to(held.dtype), held[place])
        held.index_copy_(0, place, rows)
        self.oldest.copy_((self.oldest + number) % length)
        self.count.copy_((self.count + number).clamp(max=length))

    def drawn(self, rows: int, each: int) -> Tensor:
        """Draw features, with repetition, for ``rows`` rows of each class: (num_classes, rows, each, dim).

        The rows of an empty class are arbitrary.
        """
        num_classes, length, dim = self.features.shape
        device = self.count.device
        draws = torch.rand(num_classes, rows, each, device=device)  # the same in every process
        place = (draws * self.count[:, None, None]).long()
        first = length * torch.arange(num_classes, device=device)[:, None, None]
        return self.features.view(-1, dim)[first + place]
