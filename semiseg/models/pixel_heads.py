"""Heads for single pixels: rows (N, D), some of which do not count.

Shapes are fixed: a row that does not count is computed too, but leaves no trace in batch norm's statistics.
So no step waits for the device to learn how many rows there are.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad, relu

from semiseg.base.distributed import summed


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics come from the rows of all processes that are ``valid``."""

    def forward(self, rows: Tensor, valid: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise rows (N, D) by the statistics of the ``valid`` (N,) ones; returns (N, D) float32."""
        assert self.running_mean is not None
        assert self.running_var is not None
        rows = rows.float()
        mean, variance = self.running_mean, self.running_var
        if self.training:
            weight = valid[:, None].float()
            count = summed(weight.sum())
            mean = summed((weight * rows).sum(dim=0)) / count.clamp(min=1)
            variance = summed((weight * (rows - mean).square()).sum(dim=0)) / count.clamp(min=1)
            _update_running(self.running_mean, self.running_var, mean, variance, count, self.momentum)
        return (rows - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class PixelHead(nn.Module):
    """Linear - BN - ReLU - Linear (CMB's projection and prediction heads)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_dim, dim)
        self.norm = MaskedBatchNorm(dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, rows: Tensor, valid: Tensor) -> Tensor:
        """Return (N, dim) for rows (N, in_dim); where not ``valid`` (N,) the result is arbitrary."""
        out: Tensor = self.out(relu(self.norm(self.hidden(rows), valid)))
        return out


class ClassAttention(nn.Module):
    """One Linear - BN - LeakyReLU(0.2) - Linear - Sigmoid for each class, as one batch (CMB's S_c).

    Rows are laid out by class in blocks of ``block`` rows, each class's last one padded. A block belongs to
    one class, so a batched product of blocks with their classes' weights does all classes at once, and there
    are never more than N / block + num_classes blocks: work and memory grow with N, not with N x classes.
    """

    slope = 0.2
    momentum = 0.1
    eps = 1e-5
    block = 256

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        layers = [(nn.Linear(dim, dim), nn.Linear(dim, 1)) for _ in range(num_classes)]
        self.hidden_weight = _stacked([hidden.weight for hidden, _ in layers])  # (C, D out, D in)
        self.hidden_bias = _stacked([hidden.bias for hidden, _ in layers])  # (C, D)
        self.norm_weight = nn.Parameter(torch.ones(num_classes, dim))
        self.norm_bias = nn.Parameter(torch.zeros(num_classes, dim))
        self.out_weight = _stacked([out.weight[0] for _, out in layers])  # (C, D)
        self.out_bias = _stacked([out.bias[0] for _, out in layers])  # (C,)
        self.register_buffer("running_mean", torch.zeros(num_classes, dim))
        self.register_buffer("running_var", torch.ones(num_classes, dim))

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return scores (N,) float32 in (0, 1) of rows (N, dim) by the modules of their labels (N,).

        A row whose label is outside [0, C) scores zero. In training mode a class's batch statistics come
        from its own rows, of all processes.
        """
        num_classes, dim = self.norm_weight.shape
        labels = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes).long()
        place, filled, block_class = _blocks(labels, num_classes, self.block)
        source = torch.full_like(filled, len(rows), dtype=torch.int64)
        source = pad(source, (0, 1)).scatter(0, place, torch.arange(len(rows), device=rows.device))[:-1]
        blocks = pad(rows, (0, 0, 0, 1))[source].view(-1, self.block, dim)

        hidden = torch.baddbmm(
            self.hidden_bias[block_class][:, None], blocks, self.hidden_weight[block_class].mT
        ).float()
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = self._statistics(hidden, filled.view(-1, self.block, 1), block_class)
        scale = self.norm_weight * (variance + self.eps).rsqrt()
        shift = self.norm_bias - mean * scale
        hidden = leaky_relu(hidden * scale[block_class][:, None] + shift[block_class][:, None], self.slope)
        logits = (hidden * self.out_weight[block_class][:, None]).sum(dim=2) + self.out_bias[
            block_class, None
        ]
        return pad(logits.sigmoid().flatten(), (0, 1))[place]

    def _statistics(self, hidden: Tensor, filled: Tensor, block_class: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance (C, D) of each class's rows, and update the running ones."""
        zeros = torch.zeros_like(self.running_mean)

        def by_class(values: Tensor) -> Tensor:
            sums = zeros[:, : values.shape[2]].index_add(0, block_class, (values * filled).sum(dim=1))
            return summed(sums)

        count = by_class(filled.float())
        mean = by_class(hidden) / count.clamp(min=1)
        variance = by_class((hidden - mean[block_class][:, None]).square()) / count.clamp(min=1)
        _update_running(self.running_mean, self.running_var, mean, variance, count, self.momentum)
        return mean, variance


def _blocks(labels: Tensor, num_classes: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out rows with labels (N,) in [0, num_classes] by class, in whole blocks.

    Returns place (N,), each row's place in the layout (one past the end for a row of no class); filled
    (places,) bool; and block_class (places / block,), the class of each block.
    """
    places = (-(-len(labels) // block) + num_classes) * block
    count = torch.zeros(num_classes + 1, dtype=torch.int64, device=labels.device)
    count = count.scatter_add_(0, labels, torch.ones_like(labels))
    room = (count + block - 1) // block * block
    end = room[:-1].cumsum(0)
    order = labels.argsort(stable=True)
    ordered = labels[order]
    rank = torch.arange(len(labels), device=labels.device) - (count.cumsum(0) - count)[ordered]
    start = pad(end, (1, 0))  # the class after the last is that of rows that do not count
    target = torch.where(ordered < num_classes, start[ordered] + rank, places)
    place = torch.empty_like(target).scatter_(0, order, target)
    filled = torch.zeros(places + 1, dtype=torch.bool, device=labels.device)
    filled = filled.scatter_(0, place, True)[:places]
    first = torch.arange(0, places, block, device=labels.device)
    block_class = torch.searchsorted(end, first, right=True).clamp(max=num_classes - 1)
    return place, filled, block_class


def _stacked(parameters: list[nn.Parameter] | list[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([each.detach() for each in parameters]))


@torch.no_grad()
def _update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    momentum: float | None,
) -> None:
    """Update as nn.BatchNorm1d does, with the unbiased variance; fewer than two rows change nothing."""
    assert momentum is not None
    step = torch.where(count > 1, momentum, 0.0)
    running_mean.lerp_(mean, step.expand_as(mean))
    running_var.lerp_(variance * count / (count - 1).clamp(min=1), step.expand_as(variance))
