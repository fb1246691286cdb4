"""Batch norm over the images of all processes."""

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
