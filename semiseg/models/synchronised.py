"""Batch norm over the images of all processes, or over parts of the batch."""

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from semiseg.base import distributed
from semiseg.models.pixel_heads import MaskedBatchNorm


class HostBatchNorm(MaskedBatchNorm):
    """nn.SyncBatchNorm's counterpart for processes on a CPU, of images (B, D, H, W).

    It takes over the parameters and statistics of ``norm``, and the activation that timm may have in it.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.load_state_dict(norm.state_dict())
        self.then = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        batch, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(-1, channels)
        every = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        normalised = super().forward(rows, every)
        result: Tensor = self.then(normalised.view(batch, height, width, channels).permute(0, 3, 1, 2))
        return result


class SplitBatchNorm(nn.BatchNorm1d):
    """Batch norm over each of ``groups`` blocks of neighbouring images (B, D, H, W) of this process.

    Running statistics are those of the groups' means, the same in all processes. It takes over the parameters
    and statistics of ``norm``, and the activation that timm may have in it. MoCo's releases get the same from
    one process a GPU.
    """

    def __init__(self, norm: nn.BatchNorm2d, groups: int) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias, self.groups = norm.weight, norm.bias, groups
        self.load_state_dict(norm.state_dict())
        self.then = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance = self.running_mean[:, None, None], self.running_var[:, None, None]
        rows = images.float().unflatten(0, (self.groups if self.training else 1, -1))
        if self.training:
            variance, mean = torch.var_mean(rows, dim=(1, 3, 4), keepdim=True, correction=0)
            count = rows[0, :, 0].numel()
            self._update(mean, variance * count / max(count - 1, 1))
        scale = self.weight[:, None, None] * (variance + self.eps).rsqrt()
        normalised = ((rows - mean) * scale + self.bias[:, None, None]).flatten(0, 1)
        result: Tensor = self.then(normalised.to(images.dtype))
        return result

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        seen = distributed.averaged(torch.stack((mean, variance)).mean(dim=1).flatten(1))
        self.running_mean.lerp_(seen[0], self.momentum)
        self.running_var.lerp_(seen[1], self.momentum)


def split(module: nn.Module, groups: int) -> None:
    """Replace every nn.BatchNorm2d below ``module`` by a SplitBatchNorm of ``groups`` blocks."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, SplitBatchNorm(child, groups))
        else:
            split(child, groups)


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Exchange every nn.BatchNorm2d below ``module`` in a run of several processes; the parameters stay.

    The heads that work on rows sum over the processes themselves.
    """
    if distributed.size() == 1:
        return
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            synchronise(child, device)
        elif device.type == "cuda":
            setattr(module, name, convert_sync_batchnorm(child))
        else:
            setattr(module, name, HostBatchNorm(child))
