"""Layers that the heads share."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from semiseg.base.distributed import own, size


def convolution(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return convolution without a bias, batch norm and ReLU; sizes stay, weights begin as He's."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Dropout(nn.Dropout):
    """Dropout that draws for the global batch, so that the number of processes does not matter."""

    def forward(self, values: Tensor) -> Tensor:
        if size() == 1 or not self.training:
            return super().forward(values)
        batch = torch.cat([values.detach()] * size())
        return values * own(dropout(torch.ones_like(batch), self.p))
