"""Decoded files as tensors."""

from pathlib import Path

import torch
from torch import Tensor

from semiseg.data.decoding import decode_image, decode_mask


def read_image(path: Path) -> Tensor:
    """An image as RGB (3, H, W) uint8. Raises UserError naming a file that cannot be decoded.

    Its channels are last in memory, as they are decoded, and as resizing is fastest.
    """
    return torch.from_numpy(decode_image(path)).permute(2, 0, 1)


def read_mask(path: Path, image: Tensor, num_classes: int) -> Tensor:
    """A mask of class ids (H, W) uint8 of an image (3, H, W).

    Raises UserError naming a file that cannot be decoded, whose size is not ``image``'s, or that holds a
    value that is neither a class nor 255.
    """
    return torch.from_numpy(decode_mask(path, (image.shape[-2], image.shape[-1]), num_classes))
