"""Paired geometry: an image and its mask are scaled, cropped and flipped as one."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import InterpolationMode, resize

from semiseg.config import Geometry
from semiseg.data.decoding import IGNORE

PADDING = (124, 116, 104)  # ImageNet's mean colour, zero once normalised


def resize_long_side(image: Tensor, mask: Tensor | None, long_side: int) -> tuple[Tensor, Tensor]:
    """Scale an image (3, H, W) uint8, bilinear and antialiased, and its mask (H, W) uint8, nearest.

    ``long_side`` is the result's, in pixels. Without a mask, one of zeros is made: padding will be told from
    image by it.
    """
    height, width = image.shape[-2:]
    scale = long_side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    image = resize(image, size, InterpolationMode.BILINEAR, antialias=True)
    if mask is None:
        return image, torch.zeros(size, dtype=torch.uint8)
    # NEAREST takes each pixel's corner and would shift the mask against the image; NEAREST_EXACT its centre.
    return image, resize(mask[None], size, InterpolationMode.NEAREST_EXACT)[0]


def pad_to(image: Tensor, mask: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pad at the right and at the bottom to at least (height, width): the mean colour, and 255."""
    below, right = max(0, height - image.shape[-2]), max(0, width - image.shape[-1])
    if not below and not right:
        return image, mask
    inside = pad(torch.ones_like(mask, dtype=torch.bool), (0, right, 0, below))
    colour = torch.tensor(PADDING, dtype=torch.uint8)[:, None, None]
    image = torch.where(inside, pad(image, (0, right, 0, below)), colour)
    return image, pad(mask, (0, right, 0, below), value=IGNORE)


def random_scale_crop_flip(
    image: Tensor, mask: Tensor | None, geometry: Geometry, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The weak view: long side = base_size x U(scale), a random square crop, a flip half of the time.

    Returns the crop (3, crop, crop) uint8 and its mask (crop, crop) uint8, 255 on padding; for an unlabelled
    image (mask None) the mask is 0 everywhere else.
    """
    low, high = geometry.scale
    scale = low + (high - low) * _uniform(generator)
    image, mask = resize_long_side(image, mask, round(geometry.base_size * scale))
    image, mask = pad_to(image, mask, geometry.crop, geometry.crop)
    top = _integer(image.shape[-2] - geometry.crop + 1, generator)
    left = _integer(image.shape[-1] - geometry.crop + 1, generator)
    image = image[:, top : top + geometry.crop, left : left + geometry.crop]
    mask = mask[top : top + geometry.crop, left : left + geometry.crop]
    if _uniform(generator) < 0.5:
        image, mask = image.flip(-1), mask.flip(-1)
    return image.contiguous(), mask.contiguous()


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _integer(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
