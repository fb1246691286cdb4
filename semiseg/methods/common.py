"""What several methods share: weak and strong views, CutMix, pseudo-labels, hard examples, ramp-up.

Everything here works on whole batches on the device and never waits for it. Draws come from
``distributed.uniform``, so every image has its own, whatever the number of processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from semiseg.base.distributed import following, uniform
from semiseg.base.labels import IGNORE
from semiseg.base.parameters import Geometry, Protocol
from semiseg.data.augment import Pixels, colour_jitter, gaussian_blur, greyscale
from semiseg.data.geometry import random_scale_crop_flip
from semiseg.data.streams import View
from semiseg.losses import cross_entropy, hard_cross_entropy
from semiseg.models.network import SegmentationNetwork

ASPECTS = 512  # steps of the aspect that a box's shape is drawn from

# --- options --------------------------------------------------------------------------------------------


def check_choice(config: object, name: str, *known: str) -> None:
    """Raise ValueError unless the field ``name`` is one of ``known``."""
    value = getattr(config, name)
    if value not in known:
        raise ValueError(f"{name}: '{value}' is none of {', '.join(known)}")


def check_range(config: object, low: float, high: float, *names: str) -> None:
    """Raise ValueError unless each field, a number or a pair of rising numbers, lies in [low, high]."""
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, Sequence) else (value,)
        if not low <= values[0] <= values[-1] <= high:
            shown = list(value) if isinstance(value, Sequence) else value
            raise ValueError(f"{name}: {shown} is outside [{low:g}, {high:g}], or does not rise")


def ramp_up(step: int, steps: int) -> float:
    """Return exp(−5 (1 − step / steps)²), and one from ``steps`` on."""
    return 1.0 if step >= steps else math.exp(-5 * (1 - step / steps) ** 2)


# --- views ----------------------------------------------------------------------------------------------


def weak_view(geometry: Geometry) -> View:
    """Return the weak view of an unlabelled image: scaled, cropped and flipped as ``geometry`` says.

    The view holds image (3, crop, crop) uint8 and mask (crop, crop) uint8, 255 on padding and 0 elsewhere.
    """
    return partial(_weak_view, geometry=geometry)


def _weak_view(image: Tensor, generator: torch.Generator, *, geometry: Geometry) -> dict[str, Tensor]:
    crop, mask = random_scale_crop_flip(image, None, geometry, generator)
    return {"image": crop, "mask": mask}


@dataclass(frozen=True)
class Colours:
    """The colour changes of a strong view; the defaults are UniMatch's (dataset/semi.py 51-61)."""

    jitter: float = 0.8  # probability of the four changes below
    brightness: float = 0.5  # factor in [1 - x, 1 + x], as for the next two
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.25  # turns, in [-x, x]
    grey: float = 0.2  # probability
    blur: float = 0.5  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels

    def __post_init__(self) -> None:
        check_range(self, 0, 1, "jitter", "brightness", "contrast", "saturation", "grey", "blur")
        check_range(self, 0, 0.5, "hue")
        check_range(self, 0.01, 100, "blur_sigma")


def strong_view(images: Tensor, colours: Colours) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] jittered, greyed and blurred, each by its own draws."""
    images = colour_jitter(
        images,
        probability=colours.jitter,
        brightness=colours.brightness,
        contrast=colours.contrast,
        saturation=colours.saturation,
        hue=colours.hue,
    )
    images = greyscale(images, probability=colours.grey)
    if colours.blur > 0:
        images = gaussian_blur(images, probability=colours.blur, sigma=colours.blur_sigma)
    return images


# --- CutMix ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CutMix:
    """The boxes that CutMix pastes; the defaults are UniMatch's (dataset/transform.py 66-84).

    Without ``aspect`` the boxes are those of French et al. (BMVC 2020): log-uniform over every shape that
    fits, and at most 1 / √boxes of the image high and wide.
    """

    probability: float = 0.5  # that an image is mixed
    area: tuple[float, float] = (0.02, 0.4)  # of each box times ``boxes``, as a share of the image: U(area)
    aspect: tuple[float, float] | None = (0.3, 1 / 0.3)  # height over width: U(aspect), redrawn until it fits
    boxes: int = 1  # where an even number of them overlaps, nothing is pasted

    def __post_init__(self) -> None:
        check_range(self, 0, 1, "probability")
        check_range(self, 1e-6, 1, "area")
        check_range(self, 1, 100, "boxes")
        if self.aspect is not None:
            check_range(self, 1e-3, 1e3, "aspect")
            if not self.aspect[0] < 1 / self.area[1] or not self.aspect[1] > self.area[1]:
                raise ValueError(f"aspect: no box in {list(self.aspect)} fits with area {self.area[1]:g}")


def cutmix_boxes(images: Tensor, cutmix: CutMix) -> Tensor:
    """Draw the places that are pasted for images (B, 3, H, W): (B, H, W) bool."""
    (batch, _, height, width), boxes, device = images.shape, cutmix.boxes, images.device
    drawn, shape, *place = uniform(batch, boxes, 4, device=device).unbind(dim=2)
    area = cutmix.area[0] + (cutmix.area[1] - cutmix.area[0]) * drawn
    tall = area**shape if cutmix.aspect is None else (area * _aspects(area, *cutmix.aspect, shape)).sqrt()
    y = _covered(tall / math.sqrt(boxes), place[0], height)
    x = _covered(area / tall / math.sqrt(boxes), place[1], width)
    inside = (y[..., :, None] & x[..., None, :]).sum(dim=1, dtype=torch.uint8) % 2 == 1
    mixed = uniform(batch, 1, 1, device=device) < cutmix.probability
    return inside & mixed


def _aspects(area: Tensor, low: float, high: float, draw: Tensor) -> Tensor:
    """Draw the aspect of boxes of ``area``, both (B, n), when aspect and corner are redrawn until one fits.

    The density of an aspect is then the share of corners with which the box fits: (1 − height) (1 − width).
    """
    steps = torch.linspace(low, high, ASPECTS, device=area.device)
    scaled = area[..., None]
    room = (1 - (scaled * steps).sqrt()).clamp(min=0) * (1 - (scaled / steps).sqrt()).clamp(min=0)
    below = room.cumsum(dim=-1)
    index = torch.searchsorted(below, draw[..., None] * below[..., -1:])[..., 0]
    return steps[index.clamp(max=ASPECTS - 1)]


def _covered(share: Tensor, place: Tensor, length: int) -> Tensor:
    """Which pixels of one axis lie in an interval of ``share`` of it, at ``place`` in [0, 1) of the rest."""
    pixels = (share * length).round()
    first = (place * (length - pixels + 1)).floor()
    index = torch.arange(length, device=share.device)
    return (index >= first[..., None]) & (index < (first + pixels)[..., None])


def cut_and_paste(pixels: Pixels, boxes: Tensor, pasted: Pixels | None = None) -> Pixels:
    """Paste what ``boxes`` (B, H, W) cover of the next image of the batch (the first follows the last).

    Images, labels and weights are pasted alike, from ``pasted`` if it is given, else from ``pixels``.
    """
    pairs = zip(pixels, pasted or pixels, strict=True)
    return Pixels(*(mix(ours, boxes, following(theirs)) for ours, theirs in pairs))


def mix(values: Tensor, boxes: Tensor, others: Tensor) -> Tensor:
    """Take ``others`` where ``boxes`` (B, H, W), else ``values``; both (B, H, W) or (B, D, H, W)."""
    return torch.where(boxes if values.ndim == 3 else boxes[:, None], others, values)


# --- pseudo-labels --------------------------------------------------------------------------------------


@torch.no_grad()
def predict(network: SegmentationNetwork, images: Tensor, *, training: bool) -> Tensor:
    """Return logits (B, C, H, W) float32 without gradient, in training or in evaluation mode.

    The mode says how batch norm and dropout behave; afterwards every module has its own again.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.train(training)
    logits: Tensor = network(images)
    for module, mode in modes:
        module.training = mode
    return logits


@torch.no_grad()
def pseudo_labelled(images: Tensor, padding: Tensor, logits: Tensor) -> Pixels:
    """Label images (B, 3, H, W) with the most probable class of ``logits``; its probability is the weight.

    ``padding`` (B, H, W) is IGNORE where a pixel is padding: there the label is IGNORE and the weight zero.
    """
    confidence, labels = logits.softmax(dim=1).max(dim=1)
    outside = padding == IGNORE
    return Pixels(images, labels.masked_fill(outside, IGNORE), confidence.masked_fill(outside, 0.0))


# --- passes ---------------------------------------------------------------------------------------------


def together(*batches: Tensor) -> Tensor:
    """Join batches for one pass, so that processes' shares of the result are made of their shares.

    Neighbouring rows stay neighbours: of 4 and 2 rows come two groups of 2 and 1. Dropout then draws the same
    numbers for a row whatever the number of processes.
    """
    groups = math.gcd(*(len(batch) for batch in batches))
    return torch.cat([batch.unflatten(0, (groups, -1)) for batch in batches], dim=1).flatten(0, 1)


def apart(rows: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Undo ``together`` of batches of ``sizes``."""
    groups = math.gcd(*sizes)
    parts = rows.unflatten(0, (groups, -1)).split([size // groups for size in sizes], dim=1)
    return tuple(part.flatten(0, 1) for part in parts)


# --- the supervised loss --------------------------------------------------------------------------------


@dataclass(frozen=True)
class HardExamples:
    """Online hard example mining of the supervised loss; see semiseg.losses.hard_cross_entropy."""

    pixels: int  # of each image that are kept at least
    threshold: float = 0.7  # pixels whose class has at most this probability are kept, too

    def __post_init__(self) -> None:
        check_range(self, 1, math.inf, "pixels")
        check_range(self, 0, 1, "threshold")

    def check(self, protocol: Protocol) -> None:
        """Raise ValueError if a crop of ``protocol`` has fewer pixels than are kept."""
        crop = protocol.geometry.crop
        if self.pixels > crop**2:
            raise ValueError(f"hard_examples: pixels: {self.pixels} are more than a crop of {crop} has")


def supervised_loss(logits: Tensor, labels: Tensor, hard_examples: HardExamples | None) -> Tensor:
    """Return the cross-entropy of labelled pixels, or of the hard ones among them."""
    if hard_examples is None:
        return cross_entropy(logits, labels)
    return hard_cross_entropy(logits, labels, pixels=hard_examples.pixels, threshold=hard_examples.threshold)
