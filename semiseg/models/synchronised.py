"""Batch norm over the images of all processes."""

import torch
from torch import Tensor, nn

from semiseg.base import distributed
from semiseg.models.pixel_heads import MaskedBatchNorm


class HostBatchNorm(MaskedBatchNorm):
    """What nn.SyncBatchNorm is to GPUs, for processes on a CPU: images (B, D, H, W), a pixel a row."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        batch, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(-1, channels)
        every = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        normalised = super().forward(rows, every)
        return normalised.view(batch, height, width, channels).permute(0, 3, 1, 2)


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Exchange every nn.BatchNorm2d below ``module`` in a run of several processes; the parameters stay.

    The heads that work on rows sum over the processes themselves.
    """
    if distributed.size() == 1:
        return
    for name, child in module.named_children():
        if type(child) is not nn.BatchNorm2d:
            synchronise(child, device)
        elif device.type == "cuda":
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            setattr(module, name, _on_the_host(child))


def _on_the_host(norm: nn.BatchNorm2d) -> HostBatchNorm:
    exchanged = HostBatchNorm(norm.num_features, norm.eps, norm.momentum)
    exchanged.weight, exchanged.bias = norm.weight, norm.bias
    exchanged.load_state_dict(norm.state_dict())
    return exchanged.train(norm.training)
