"""Read prepared files as tensors."""

from pathlib import Path

import torch
from torch import Tensor

from semiseg.base.errors import UserError
from semiseg.data.decoding import decode_image, decode_mask, image_size
from semiseg.data.prepared import with_remedy


def read_image(path: Path) -> Tensor:
    """Read a prepared image as RGB (3, H, W) uint8, channels last in memory, which resizes fastest.

    Raises UserError naming a file that cannot be decoded.
    """
    try:
        return torch.from_numpy(decode_image(path)).permute(2, 0, 1)
    except UserError as error:
        raise with_remedy(error, path) from None


def read_size(path: Path) -> tuple[int, int]:
    """Return the (width, height) of a prepared image without decoding it.

    Raises UserError naming a file whose header cannot be read.
    """
    try:
        return image_size(path)
    except UserError as error:
        raise with_remedy(error, path) from None


def read_mask(path: Path, image: Tensor | None, num_classes: int) -> Tensor:
    """Read the prepared mask of ``image`` (3, H, W; None: not at hand) as class ids (H, W) uint8.

    Raises UserError naming a file that cannot be decoded, whose size is not that of ``image``, or that holds
    a value that is neither a class nor 255.
    """
    size = None if image is None else (image.shape[-2], image.shape[-1])
    try:
        return torch.from_numpy(decode_mask(path, size, num_classes))
    except UserError as error:
        raise with_remedy(error, path) from None
