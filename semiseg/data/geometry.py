"""Scale, crop and flip an image and its mask together."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from semiseg.base.labels import IGNORE
from semiseg.base.parameters import Geometry

PADDING = (124, 116, 104)  # ImageNet's mean colour, zero once normalised

Window = tuple[slice, slice]  # rows and columns


def resize_image(image: Tensor, long_side: int) -> Tensor:
    """Scale (3, H, W) uint8 to this long side in pixels: bilinear, antialiased."""
    return resize(image, _scaled(image.shape[-2:], long_side), InterpolationMode.BILINEAR, antialias=True)


def resize_mask(mask: Tensor, long_side: int, window: Window = (slice(None), slice(None))) -> Tensor:
    """Scale (H, W) uint8 likewise, but compute only the pixels in ``window``.

    A pixel takes the value under its centre, as torchvision's NEAREST_EXACT does (NEAREST takes corners,
    and would shift the mask against the image).
    """
    sizes = zip(mask.shape, _scaled(mask.shape, long_side), window, strict=True)
    rows, columns = (_nearest(length, target)[part] for length, target, part in sizes)
    return torch.from_numpy(mask.numpy().take(rows, axis=0).take(columns, axis=1))


def _nearest(length: int, target: int) -> NDArray[np.int64]:
    """Return the pixel of ``length`` under the centre of each of ``target``, in float32 as in torch."""
    centres = np.arange(target, dtype=np.float32) + np.float32(0.5)
    return (centres * np.float32(length / target)).astype(np.int64)


def _scaled(size: Sequence[int], long_side: int) -> list[int]:
    scale = long_side / max(size)
    return [max(1, round(length * scale)) for length in size]


def pad_image(image: Tensor, height: int, width: int) -> Tensor:
    """Pad (C, H, W) at the right and at the bottom to at least (height, width).

    The padding is ImageNet's mean colour for uint8 RGB, else zero.
    """
    rows, columns = image.shape[-2:]
    if rows >= height and columns >= width:
        return image
    colour = image.new_tensor(PADDING if image.dtype == torch.uint8 and len(image) == 3 else [0] * len(image))
    padded = colour[:, None, None].repeat(1, max(rows, height), max(columns, width))
    padded[:, :rows, :columns] = image
    return padded


def pad_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Pad (H, W) at the right and at the bottom to at least (height, width), with 255."""
    rows, columns = mask.shape
    if rows >= height and columns >= width:
        return mask
    padded = mask.new_full((max(rows, height), max(columns, width)), IGNORE)
    padded[:rows, :columns] = mask
    return padded


def random_scale_crop_flip(
    image: Tensor, mask: Tensor | None, geometry: Geometry, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the weak view: long side base_size x U(scale), a random square crop, a flip half of the time.

    Returns the crop (3, crop, crop) uint8 and its mask (crop, crop) uint8, 255 on padding; for an unlabelled
    image (mask None) the mask is 0 everywhere else.
    """
    long_side, window, flipped = _drawn(image.shape[-2:], geometry, generator)
    crop = resize_image(image, long_side)[:, *window]
    if mask is None:
        mask = torch.zeros(crop.shape[-2:], dtype=torch.uint8)
    else:
        mask = resize_mask(mask, long_side, window)
    crop = pad_image(crop, geometry.crop, geometry.crop)
    return (crop.flip(-1) if flipped else crop).contiguous(), _finished(mask, geometry, flipped)


def mask_of_weak_view(mask: Tensor, geometry: Geometry, generator: torch.Generator) -> Tensor:
    """Return what ``random_scale_crop_flip`` makes of the mask, without the image."""
    long_side, window, flipped = _drawn(mask.shape, geometry, generator)
    return _finished(resize_mask(mask, long_side, window), geometry, flipped)


def _drawn(size: Sequence[int], geometry: Geometry, generator: torch.Generator) -> tuple[int, Window, bool]:
    """Draw the long side in pixels, the crop's place, and whether it is flipped, of an image of ``size``."""
    low, high = geometry.scale
    long_side = round(geometry.base_size * (low + (high - low) * _uniform(generator)))
    side = geometry.crop
    top, left = (_integer(max(0, length - side) + 1, generator) for length in _scaled(size, long_side))
    window = slice(top, top + side), slice(left, left + side)
    return long_side, window, _uniform(generator) < 0.5


def _finished(mask: Tensor, geometry: Geometry, flipped: bool) -> Tensor:
    mask = pad_mask(mask, geometry.crop, geometry.crop)
    return (mask.flip(-1) if flipped else mask).contiguous()


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _integer(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
