"""Many small decoders side by side, computed as one."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, relu


class AuxiliaryDecoders(nn.Module):
    """K decoders of features, each with weights of its own, without a loop over them (CCT, section 3.2).

    A decoder is a 1 x 1 convolution to the classes, then ``doublings`` sub-pixel convolutions (Shi et al.,
    CVPR 2016), each with a ReLU, that double the resolution. Without doublings its convolution has a bias.
    """

    def __init__(self, count: int, channels: int, num_classes: int, doublings: int = 0) -> None:
        super().__init__()
        self.classifier = GroupedConvolution(count, channels, num_classes, bias=doublings == 0)
        self.upsampling = nn.ModuleList(
            GroupedConvolution(count, num_classes, 4 * num_classes, repeats=4) for _ in range(doublings)
        )

    def forward(self, features: Tensor, which: slice = slice(None)) -> Tensor:
        """Map features (B, K, D, h, w), decoder k's own, to logits (B, K, C, H, W).

        ``which`` chooses decoders; K is then their number.
        """
        logits: Tensor = self.classifier(features, which)
        for convolution in self.upsampling:
            logits = pixel_shuffle(relu(convolution(logits, which)), 2)
        return logits


class GroupedConvolution(nn.Module):
    """A 1 x 1 convolution in K groups, as a batched matrix product; He's initialisation.

    The product gives what torch's grouped convolution gives, and takes half of its time on a CPU. With
    ``repeats`` n, each n neighbouring outputs start alike, so that a sub-pixel convolution starts without a
    checkerboard pattern (Aitken et al., arXiv:1707.02937).
    """

    def __init__(
        self, groups: int, inputs: int, outputs: int, *, bias: bool = True, repeats: int = 1
    ) -> None:
        super().__init__()
        weight = torch.randn(groups, outputs // repeats, inputs) * (2 / inputs) ** 0.5
        self.weight = nn.Parameter(weight.repeat_interleave(repeats, dim=1))
        self.bias = nn.Parameter(torch.zeros(groups, outputs, 1)) if bias else None

    def forward(self, values: Tensor, which: slice = slice(None)) -> Tensor:
        """Map (B, K, inputs, h, w), of the groups in ``which``, to (B, K, outputs, h, w)."""
        mapped = torch.matmul(self.weight[which], values.flatten(3))
        if self.bias is not None:
            mapped = mapped + self.bias[which]
        return mapped.unflatten(3, values.shape[-2:])
