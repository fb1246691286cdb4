"""Image and mask files -> arrays, with every file checked before it is used."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semiseg.base.errors import UserError
from semiseg.base.labels import IGNORE as IGNORE

# What Pillow raises for a file that it cannot decode.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

Pixels = NDArray[np.uint8]


def decode_image(path: Path) -> Pixels:
    """An image as RGB (H, W, 3) uint8. Raises UserError naming a file that cannot be decoded."""
    try:
        with Image.open(path) as file:
            return np.array(file if file.mode == "RGB" else file.convert("RGB"))
    except BROKEN as error:
        raise UserError(f"{path}: unreadable image ({_reason(error)}); prepare the dataset again") from None


def decode_mask(path: Path, size: tuple[int, int], num_classes: int) -> Pixels:
    """A mask of class ids (H, W) uint8, from a palette or greyscale PNG.

    Raises UserError naming a file that cannot be decoded, whose size is not ``size``, its image's (H, W), or
    that holds a value that is neither a class nor 255.
    """
    try:
        with Image.open(path) as file:
            if file.mode not in ("P", "L"):
                raise UserError(f"{path}: a mask must be a palette or greyscale PNG, this is {file.mode}")
            mask = np.array(file, dtype=np.uint8)  # a palette's indices, not its colours
    except BROKEN as error:
        raise UserError(f"{path}: unreadable mask ({_reason(error)}); prepare the dataset again") from None
    if mask.shape != size:
        raise UserError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]}, its image {size[1]}x{size[0]}; "
            "prepare the dataset again"
        )
    largest = int((mask + np.uint8(1)).max(initial=0))  # 255 becomes 0, a class its number from 1 on
    if largest > num_classes:
        raise UserError(
            f"{path}: holds the value {largest - 1}, but there are {num_classes} classes and 255; "
            "correct the mask or the dataset's classes in params.yaml"
        )
    return mask


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
