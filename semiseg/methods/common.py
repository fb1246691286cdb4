"""Parts that several methods share: views, CutMix, pseudo-labels, hard examples, ramp-up.

Everything here works on whole batches on the device and never waits for it. Draws come from
``distributed.uniform``, so every image has its own, whatever the number of processes.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from semiseg.base import checks
from semiseg.base.distributed import averaged, following, global_mean, uniform
from semiseg.base.labels import IGNORE
from semiseg.base.parameters import Geometry, Protocol
from semiseg.data.augment import Pixels, colour_jitter, gaussian_blur, greyscale, solarise
from semiseg.data.geometry import random_scale_crop_flip
from semiseg.data.streams import View
from semiseg.losses import cross_entropy, hard_cross_entropy
from semiseg.methods.contract import COUNTED, Logs
from semiseg.models.network import SegmentationNetwork

ASPECTS = 512  # steps of the aspect that a box's shape is drawn from

# --- schedules ------------------------------------------------------------------------------------------


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
    """The colour changes of a strong view; the defaults are UniMatch's (dataset/semi.py 51-61).

    UniMatch blurs with Pillow, which approximates a Gaussian; here it is one, cut at three deviations.
    """

    jitter: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.25)  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation in pixels
    blur_probability: float = 0.5
    solarise_probability: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "jitter")
        for name in ("jitter", "grey", "blur", "solarise"):
            checks.within(self, 0, 1, f"{name}_probability")
        checks.positive(self, "blur_sigma")
        checks.ascending(self, "blur_sigma")
        if self.jitter[3] > 0.5:
            raise ValueError(f"jitter: hue {self.jitter[3]} is more than half a turn")


def strong_view(images: Tensor, colours: Colours) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] jittered, greyed, blurred and solarised, each by its own draws."""
    brightness, contrast, saturation, hue = colours.jitter
    images = colour_jitter(
        images,
        probability=colours.jitter_probability,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
    )
    images = greyscale(images, probability=colours.grey_probability)
    if colours.blur_probability > 0:
        images = gaussian_blur(images, probability=colours.blur_probability, sigma=colours.blur_sigma)
    if colours.solarise_probability > 0:
        images = solarise(images, probability=colours.solarise_probability)
    return images


# --- CutMix ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CutMix:
    """The boxes that CutMix pastes; the defaults are UniMatch's (dataset/transform.py 66-84).

    Without ``aspect`` the boxes are those of French et al. (BMVC 2020): log-uniform over every shape that
    fits, and at most 1 / √boxes of the image high and wide.
    """

    probability: float = 0.5  # probability that an image is mixed
    area: tuple[float, float] = (0.02, 0.4)  # of each box times ``boxes``, as a share of the image: U(area)
    aspect: tuple[float, float] | None = (0.3, 1 / 0.3)  # height over width: U(aspect), redrawn until it fits
    boxes: int = 1  # where an even number of them overlaps, nothing is pasted

    def __post_init__(self) -> None:
        checks.within(self, 0, 1, "probability", "area")
        checks.positive(self, "area")
        checks.ascending(self, "area")
        checks.within(self, 1, 100, "boxes")
        if self.aspect is not None:
            checks.positive(self, "aspect")
            checks.ascending(self, "aspect")
            if not self.aspect[0] < 1 / self.area[1] or not self.aspect[1] > self.area[1]:
                raise ValueError(f"aspect: no box in {list(self.aspect)} fits with area {self.area[1]:g}")


def cutmix_boxes(images: Tensor, cutmix: CutMix) -> Tensor:
    """Draw the places where images (B, 3, H, W) are pasted over: (B, H, W) bool."""
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
    """Return the pixels of an axis that an interval covers: ``share`` long, at ``place`` of the rest."""
    pixels = (share * length).round()
    first = (place * (length - pixels + 1)).floor()
    index = torch.arange(length, device=share.device)
    return (index >= first[..., None]) & (index < (first + pixels)[..., None])


def cut_and_paste(pixels: Pixels, boxes: Tensor, pasted: Pixels | None = None) -> Pixels:
    """Paste the parts of the next image that ``boxes`` (B, H, W) cover; the first follows the last.

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


@torch.no_grad()
def confident_share(confidence: Tensor, inside: Tensor, threshold: float) -> Tensor:
    """Return the share of the pixels ``inside`` (B, H, W) whose ``confidence`` is at least ``threshold``.

    A scalar in [0, 1], the same in every process.
    """
    return averaged(global_mean((inside & (confidence >= threshold)).sum(), inside.sum()))


@torch.no_grad()
def judged(truth: Tensor | None, labels: Tensor, weights: Tensor, num_classes: int) -> Logs:
    """Count pseudo-labels against the hidden truth, for the log alone; return no logs without a truth.

    truth, labels: (B, H, W) int, class ids and IGNORE; weights: (B, H, W), a pixel's in the loss, in [0, 1].
    For each class c, among the pixels that truly are c: pixels_true_<c>, their number; pixels_labelled_<c>,
    the sum of their weights; pixels_right_<c>, the sum where the label is right as well.
    """
    if truth is None:
        return {}
    weights = weights.float()
    rows = torch.stack((torch.ones_like(weights), weights, weights * (labels == truth)))
    classes = torch.where(truth < num_classes, truth, num_classes).flatten().int()
    counts = rows.new_zeros(3, num_classes + 1).index_add_(1, classes, rows.flatten(1))
    kinds = zip(("true", "labelled", "right"), counts.unbind(), strict=True)
    return {f"{COUNTED}{kind}_{c}": count[c] for kind, count in kinds for c in range(num_classes)}


# --- passes ---------------------------------------------------------------------------------------------


def rows_of(features: Tensor) -> Tensor:
    """Turn (B, D, h, w) into (B h w, D)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def at_features(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the nearest pixel of each feature of maps of ``size``: (B h w,) of values (B, H, W)."""
    return interpolate(values[:, None].float(), size, mode="nearest").flatten().to(values.dtype)


def together(*batches: Tensor) -> Tensor:
    """Join batches for one pass, so that a process's rows of the result come from its own rows.

    Neighbouring rows stay neighbours: 4 and 2 rows become two groups of 2 and 1. Dropout then draws the same
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

    pixels: int  # fewest pixels of each image that are kept
    threshold: float = 0.7  # pixels whose class has at most this probability are kept, too

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "pixels")
        checks.within(self, 0, 1, "threshold")

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
