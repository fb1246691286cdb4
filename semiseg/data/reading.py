"""Decoding, with every file checked before it is used."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semiseg.errors import UserError

IGNORE = 255
BROKEN = (OSError, SyntaxError, ValueError)  # what Pillow raises for a file that it cannot decode


def read_image(path: Path) -> Tensor:
    """An image as RGB (3, H, W) uint8. Raises UserError naming a file that cannot be decoded."""
    try:
        with Image.open(path) as file:
            pixels = np.array(file.convert("RGB"))
    except BROKEN as error:
        raise UserError(f"{path}: unreadable image ({error}); prepare the dataset again") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_mask(path: Path, image: Tensor, num_classes: int) -> Tensor:
    """A mask of class ids (H, W) uint8, from a palette or greyscale PNG.

    Raises UserError naming a file that cannot be decoded, whose size is not ``image``'s, or that holds a
    value that is neither a class nor 255.
    """
    try:
        with Image.open(path) as file:
            if file.mode not in ("P", "L"):
                raise UserError(f"{path}: a mask must be a palette or greyscale PNG, this is {file.mode}")
            mask = torch.from_numpy(np.array(file, dtype=np.uint8))  # a palette's indices, not its colours
    except BROKEN as error:
        raise UserError(f"{path}: unreadable mask ({error}); prepare the dataset again") from None
    if mask.shape != image.shape[-2:]:
        height, width = image.shape[-2:]
        raise UserError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}; "
            "prepare the dataset again"
        )
    wrong = mask[(mask >= num_classes) & (mask != IGNORE)]
    if len(wrong):
        raise UserError(
            f"{path}: holds the value {int(wrong[0])}, but there are {num_classes} classes and 255; "
            "correct the mask or the dataset's classes in params.yaml"
        )
    return mask
