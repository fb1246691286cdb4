"""Augment whole batches on the device, each image by its own draw.

Images are (B, 3, H, W) float in [0, 1]; labels (B, H, W) int64 with IGNORE; weights (B, H, W) float. All
randomness comes from torch's default generators (the order of the colour changes from the CPU's), and no
call waits for the device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

from semiseg.base.distributed import following, uniform
from semiseg.base.labels import IGNORE

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Pixels(NamedTuple):
    """Images with the label and weight of each pixel; geometry moves all three together."""

    images: Tensor  # (B, 3, H, W) float in [0, 1]
    labels: Tensor  # (B, H, W) int64, class ids and IGNORE
    weights: Tensor  # (B, H, W) float, zero where a pixel is padding


# --- colour ---------------------------------------------------------------------------------------------


def colour_jitter(
    images: Tensor,
    *,
    probability: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    additive: bool = False,
) -> Tensor:
    """Change brightness, contrast, saturation (factors in [max(0, 1 - x), 1 + x]) and hue (turns in ±hue).

    The four follow in a random order, one for the batch; the factors are each image's own. Values stay in
    [0, 1]. The factors multiply the image, its distance from its mean luma and from each pixel's luma, as in
    torchvision. With ``additive``, as in kornia 0.4, the brightness factor minus one is added, contrast
    multiplies the image, and saturation is that of HSV.
    """
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: x * _factor(x, brightness),
        lambda x: _blend(x, _luma(x).mean(dim=(2, 3), keepdim=True), _factor(x, contrast)),
        lambda x: _blend(x, _luma(x), _factor(x, saturation)),
        lambda x: _shift_hue(x, _uniform(x, -hue, hue)),
    ]
    if additive:
        changes[:3] = [
            lambda x: x + _factor(x, brightness) - 1,
            lambda x: x * _factor(x, contrast),
            lambda x: _scale_saturation(x, _factor(x, saturation)),
        ]
    changed = images
    for place in torch.randperm(len(changes)).tolist():
        changed = changes[place](changed).clamp(0, 1)
    return torch.where(_drawn(images, probability), changed, images)


def gaussian_blur(
    images: Tensor, *, probability: float, sigma: tuple[float, float], by_axis: bool = False
) -> Tensor:
    """Blur with a Gaussian of standard deviation U(sigma) pixels, cut at three times the largest one.

    With ``by_axis`` nothing is drawn: the first deviation acts down columns, the second along rows.
    """
    batch, _, height, width = images.shape
    radius = min(math.ceil(3 * sigma[1]), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)

    def kernels(deviations: Tensor) -> Tensor:
        taps = torch.exp(-0.5 * (offsets / deviations.view(-1, 1)) ** 2)
        return (taps / taps.sum(dim=1, keepdim=True)).expand(batch, -1)

    if by_axis:
        down, along = (kernels(offsets.new_full((1,), deviation)) for deviation in sigma)
    else:
        down = along = kernels(_uniform(images, *sigma))
    return torch.where(_drawn(images, probability), _convolved(images, down, along), images)


def kernel_blur(images: Tensor, *, probability: float, taps: tuple[float, ...]) -> Tensor:
    """Blur rows and columns with the odd number of ``taps``, divided by their sum."""
    # Filled on the device: a copy from the host would wait for it.
    kernel = torch.stack([images.new_full((), tap / sum(taps)) for tap in taps]).expand(len(images), -1)
    return torch.where(_drawn(images, probability), _convolved(images, kernel, kernel), images)


def greyscale(images: Tensor, *, probability: float) -> Tensor:
    """Replace the three channels by their luma."""
    return torch.where(_drawn(images, probability), _luma(images), images)


def solarise(images: Tensor, *, probability: float) -> Tensor:
    """Invert the values from one half on (Grill et al., NeurIPS 2020)."""
    return torch.where(_drawn(images, probability) & (images >= 0.5), 1 - images, images)


# --- geometry -------------------------------------------------------------------------------------------


def random_flip(pixels: Pixels, *, probability: float = 0.5) -> Pixels:
    """Mirror left and right."""
    drawn = _drawn(pixels.images, probability)
    return Pixels(*(torch.where(drawn.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x) for x in pixels))


def random_scale_crop(pixels: Pixels, *, probability: float, scale: tuple[float, float]) -> Pixels:
    """Scale by U(scale) and go back to (H, W): a random window if larger, centred on padding if smaller.

    Images and weights are interpolated bilinearly, labels take the nearest pixel; padding has colour 0,
    label IGNORE and weight 0.
    """
    images = pixels.images
    height, width = images.shape[-2:]
    drawn = _drawn(images, probability)
    factor = torch.where(drawn, _uniform(images, *scale), torch.ones_like(drawn, dtype=torch.float32))
    y = _source_positions(height, factor)
    x = _source_positions(width, factor)
    grid = torch.stack((x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=-1)
    inside = (grid.abs() <= 1).all(dim=-1)

    def sampled(values: Tensor, mode: str) -> Tensor:
        return grid_sample(values.float(), grid, mode=mode, padding_mode="border", align_corners=False)

    return Pixels(
        images=(sampled(images, "bilinear") * inside[:, None]).to(images.dtype),
        labels=torch.where(inside, sampled(pixels.labels[:, None], "nearest")[:, 0].long(), IGNORE),
        weights=(sampled(pixels.weights[:, None], "bilinear")[:, 0] * inside).to(pixels.weights.dtype),
    )


def _source_positions(length: int, factor: Tensor) -> Tensor:
    """Return the source of each output pixel along one axis: (B, length) in grid_sample's [-1, 1]."""
    room = (factor.view(-1, 1) - 1) * length  # pixels by which the scaled axis is longer; negative: padding
    draw = _random(factor, 1)
    start = torch.where(room > 0, torch.floor(draw * (room + 1)).minimum(room), room / 2)
    centres = torch.arange(length, device=factor.device) + 0.5
    return 2 * (centres + start) / (factor.view(-1, 1) * length) - 1


# --- mixing ---------------------------------------------------------------------------------------------


def classmix(
    pixels: Pixels, *, num_classes: int, probability: float, background: int | None, extra_classes: int = 0
) -> Pixels:
    """Paste half of the classes of the next image of the batch (the first follows the last): ClassMix.

    Of the n classes that an image's labels hold, background and IGNORE apart, n // 2 + ``extra_classes`` are
    drawn, and their pixels are pasted with labels and weights (Olsson et al., WACV 2021). A pixel labelled
    IGNORE or ``background`` is never pasted.
    """
    labels = pixels.labels
    flat = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes).flatten(1)
    held = torch.zeros(len(flat), num_classes + 1, device=labels.device).scatter_(1, flat, 1.0)
    held[:, num_classes] = 0
    if background is not None:
        held[:, background] = 0
    number = held.sum(dim=1, keepdim=True)
    count = (number // 2 + extra_classes).minimum(number)
    rank = (_random(held, num_classes + 1) * held).argsort(dim=1, descending=True).argsort(dim=1)
    chosen = (rank < count) & (held > 0)
    pasted = following(chosen.gather(1, flat).view_as(labels))
    pasted = pasted & _drawn(pixels.images, probability).view(-1, 1, 1)
    return Pixels(
        *(torch.where(pasted if x.dim() == 3 else pasted[:, None], following(x), x) for x in pixels)
    )


# --- draws and colour spaces ----------------------------------------------------------------------------


def _random(images: Tensor, *shape: int) -> Tensor:
    """Draw U(0, 1) of ``shape`` for each image."""
    return uniform(len(images), *shape, device=images.device)


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """Draw a number in [low, high) for each image: (B, 1, 1, 1) float32."""
    return low + (high - low) * _random(images, 1, 1, 1)


def _drawn(images: Tensor, probability: float) -> Tensor:
    """Draw True for each image with ``probability``: (B, 1, 1, 1) bool."""
    return _random(images, 1, 1, 1) < probability


def _factor(images: Tensor, strength: float) -> Tensor:
    return _uniform(images, max(0.0, 1 - strength), 1 + strength).to(images.dtype)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return other + factor * (images - other)


def _convolved(images: Tensor, down: Tensor, along: Tensor) -> Tensor:
    """Convolve each image's columns with ``down`` and its rows with ``along``, (B, taps); reflect borders."""
    batch, channels, height, width = images.shape
    rows, columns = down.shape[1] // 2, along.shape[1] // 2
    down, along = (each.to(images.dtype).repeat_interleave(channels, 0) for each in (down, along))
    groups = batch * channels
    blurred = pad(images, (columns, columns, rows, rows), mode="reflect").reshape(
        1, groups, height + 2 * rows, width + 2 * columns
    )
    with torch.autocast(images.device.type, enabled=False):  # bf16 would round the colours to 8 bits
        blurred = conv2d(blurred, along.view(groups, 1, 1, -1), groups=groups)
        return conv2d(blurred, down.view(groups, 1, -1, 1), groups=groups).view_as(images)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(dim=1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1).expand_as(images)


def _scale_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the saturation of HSV, which stays at most one; hue and value stay."""
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    return _blend(images, value, factor.minimum(value / torch.where(chroma > 0, chroma, 1)))


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV; saturation and value stay."""
    value, largest = images.max(dim=1)
    chroma = value - images.amin(dim=1)
    red, green, blue = images.unbind(dim=1)
    safe = torch.where(chroma > 0, chroma, 1)
    sector = torch.stack(((green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    hue = sector.gather(0, largest.unsqueeze(0))[0] + 6 * turns.view(-1, 1, 1).to(images.dtype)
    # 5, 3, 1, made on the device: a list would be copied there, and the host would wait.
    sectors = torch.arange(5, 0, -2, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    place = (sectors + hue.unsqueeze(1)) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(place, 4 - place).clamp(0, 1)
