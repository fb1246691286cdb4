"""Two crops of one image, and which of their positions show the same place.

DCC's crops have one scale and an overlap of whole positions; those of self-supervised training are resized,
each by itself, so positions correspond by the distance of their centres.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from semiseg.base.parameters import Geometry
from semiseg.data.geometry import pad_image, resize_image

DRAWS = 50  # draws of a second crop before the first is taken twice


class Box(NamedTuple):
    """A rectangle of pixels: rows y0 to y1 and columns x0 to x1, the ends excluded."""

    y0: int
    x0: int
    y1: int
    x1: int


def overlapping_crops(
    image: Tensor, size: int, stride: int, iou_range: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Box, Box]:
    """Return two square crops whose offset is a multiple of ``stride``, and the overlap's place in each.

    image: (C, H, W), padded at the right and at the bottom where it is smaller than ``size`` (with ImageNet's
    mean colour if it is uint8 RGB, else zero). The crops' intersection over union lies in ``iou_range``; if
    50 draws find none, the same crop is taken twice. Returns the crops (C, size, size) and the overlap as a
    box in each crop's own coordinates: equal in size, multiples of the stride, without padding (an image
    smaller than a stride has an empty one).
    """
    height, width = image.shape[-2:]
    image = pad_image(image, size, size)
    room = (image.shape[-2] - size, image.shape[-1] - size)
    top, left = (_up_to(each, generator) for each in room)
    down, right = 0, 0
    for _ in range(DRAWS):
        drawn = (
            _offset(top, _up_to(room[0], generator), stride),
            _offset(left, _up_to(room[1], generator), stride),
        )
        if iou_range[0] <= _iou(*drawn, size) <= iou_range[1]:
            down, right = drawn
            break

    box1 = Box(max(0, down), max(0, right), 0, 0)
    box2 = Box(max(0, -down), max(0, -right), 0, 0)
    rows = _length(min(size - abs(down), height - max(top, top + down)), stride)
    columns = _length(min(size - abs(right), width - max(left, left + right)), stride)
    return (
        image[:, top : top + size, left : left + size],
        image[:, top + down : top + down + size, left + right : left + right + size],
        box1._replace(y1=box1.y0 + rows, x1=box1.x0 + columns),
        box2._replace(y1=box2.y0 + rows, x1=box2.x0 + columns),
    )


def context_views(
    image: Tensor,
    generator: torch.Generator,
    *,
    geometry: Geometry,
    scale: tuple[float, float],
    stride: int,
    iou_range: tuple[float, float],
    flip_probability: float = 0.5,
) -> dict[str, Tensor]:
    """Return DCC's two views of an image (3, H, W) uint8, whose long side becomes base_size x U(scale).

    image1, image2: (3, crop, crop) uint8, each flipped by itself where flip1, flip2, () bool, say so; box1,
    box2: (4,) int64, the overlap in each crop before its flip; inside: (2,) int64, the rows and columns of
    both crops, before a flip, that are image, not padding.
    """
    factor = scale[0] + (scale[1] - scale[0]) * float(torch.rand((), generator=generator))
    image = resize_image(image, round(geometry.base_size * factor))
    image1, image2, box1, box2 = overlapping_crops(image, geometry.crop, stride, iou_range, generator)
    flip1, flip2 = torch.rand(2, generator=generator) < flip_probability
    return {
        "image1": (image1.flip(-1) if flip1 else image1).contiguous(),
        "image2": (image2.flip(-1) if flip2 else image2).contiguous(),
        "box1": torch.tensor(box1),
        "box2": torch.tensor(box2),
        "flip1": flip1,
        "flip2": flip2,
        "inside": torch.tensor([min(side, geometry.crop) for side in image.shape[-2:]]),
    }


def unflipped(values: Tensor, flip: Tensor) -> Tensor:
    """Undo a view's flip: values (B, ..., w); flip (B,) bool."""
    return torch.where(flip.view(-1, *[1] * (values.dim() - 1)), values.flip(-1), values)


def counterparts(box: Tensor, other_box: Tensor, height: int, width: int, cell: int) -> tuple[Tensor, Tensor]:
    """Return the position in the other view of each position of a view's features, both unflipped.

    box, other_box: (B, 4) int64, the overlap in each view, in pixels; features are (height, width) positions
    of ``cell`` pixels. Returns index (B height width,) int64 into the other view's positions, laid out alike,
    and valid, bool, which is True in the overlap; elsewhere the index is 0. Shapes are fixed: nothing waits
    for the device.
    """
    y0, x0, y1, x1 = (box // cell).view(-1, 4, 1, 1).unbind(dim=1)
    other_y0, other_x0, _, _ = (other_box // cell).view(-1, 4, 1, 1).unbind(dim=1)
    y = torch.arange(height, device=box.device).view(1, -1, 1)
    x = torch.arange(width, device=box.device).view(1, 1, -1)
    valid = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    first = torch.arange(len(box), device=box.device).view(-1, 1, 1) * (height * width)
    index = first + (y - y0 + other_y0) * width + (x - x0 + other_x0)
    return torch.where(valid, index, 0).flatten(), valid.flatten()


def resized_crops(
    image: Tensor,
    generator: torch.Generator,
    *,
    crop: int,
    area: tuple[float, float],
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip_probability: float = 0.5,
) -> dict[str, Tensor]:
    """Return two views of an image (3, H, W) uint8: random rectangles of it, resized to squares.

    A rectangle covers U(area) of the image; its width over its height is log-uniform in ``aspect``. image1,
    image2: (3, crop, crop) uint8, each flipped by itself where flip1, flip2, () bool, say so; box1, box2:
    (4,) float32, the rectangle's y0, x0, y1, x1 in the image's pixels.
    """
    views = {}
    for name in ("1", "2"):
        box = _rectangle(image.shape[-2], image.shape[-1], area, aspect, generator)
        part = image[:, box.y0 : box.y1, box.x0 : box.x1]
        square = resize(part, [crop, crop], InterpolationMode.BILINEAR, antialias=True)
        flip = torch.rand((), generator=generator) < flip_probability
        views[f"image{name}"] = (square.flip(-1) if flip else square).contiguous()
        views[f"box{name}"] = torch.tensor(box, dtype=torch.float32)
        views[f"flip{name}"] = flip
    return views


def cell_centres(box: Tensor, flip: Tensor, grid: int) -> Tensor:
    """Return where the cells of views have their centres: (B, grid², 2) float32, y and x.

    They are in pixels of the images. box (B, 4) and flip (B,) are those of ``resized_crops``; a view is
    divided into grid x grid equal cells, which are listed row by row.
    """
    share = (torch.arange(grid, device=box.device) + 0.5) / grid
    y0, x0, y1, x1 = box.unsqueeze(-1).unbind(dim=1)
    y, x = y0 + (y1 - y0) * share, x0 + (x1 - x0) * unflipped(share.expand(len(box), -1), flip)
    return torch.stack(torch.broadcast_tensors(y[:, :, None], x[:, None, :]), dim=-1).flatten(1, 2)


def cell_distances(views: Mapping[str, Tensor], grid: int) -> Tensor:
    """Return how far apart the cells of the two views lie: (B, grid², grid²), rows for those of the first.

    The unit is the larger diagonal of a cell of either view, as in PixPro (Xie et al., CVPR 2021).
    """
    one, other = (cell_centres(views[f"box{name}"], views[f"flip{name}"], grid) for name in ("1", "2"))
    sides = (
        torch.stack([views[f"box{name}"][:, 2:] - views[f"box{name}"][:, :2] for name in ("1", "2")]) / grid
    )
    diagonal = sides.norm(dim=-1).amax(dim=0)
    return (one[:, :, None] - other[:, None]).norm(dim=-1) / diagonal[:, None, None]


def _rectangle(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> Box:
    """Draw a rectangle as torchvision's RandomResizedCrop does: the first of ten draws that fits."""
    low, high = map(math.log, aspect)
    for share, shape in torch.rand(10, 2, generator=generator).tolist():
        pixels = height * width * (area[0] + (area[1] - area[0]) * share)
        ratio = math.exp(low + (high - low) * shape)
        rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            break
    else:  # the whole image, cut to the nearest aspect
        rows, columns = min(height, round(width / aspect[0])), min(width, round(height * aspect[1]))
    top, left = _up_to(height - rows, generator), _up_to(width - columns, generator)
    return Box(top, left, top + rows, left + columns)


def _offset(first: int, drawn: int, stride: int) -> int:
    """Return the drawn crop's offset from the first, rounded down to the stride, inside the image."""
    offset = (drawn - first) // stride * stride
    return offset + stride if first + offset < 0 else offset


def _iou(down: int, right: int, size: int) -> float:
    """Return the intersection over union of two squares with sides ``size``."""
    intersection = max(0, size - abs(down)) * max(0, size - abs(right))
    return intersection / (2 * size * size - intersection)


def _length(pixels: int, stride: int) -> int:
    return max(0, pixels) // stride * stride


def _up_to(last: int, generator: torch.Generator) -> int:
    """Draw an integer uniformly from [0, last]."""
    return int(torch.randint(last + 1, (), generator=generator))
