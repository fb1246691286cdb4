"""Perturbations of an encoder's features (CCT, section 3.2), for many decoders at once.

Each takes features z (B, D, h, w) and the random numbers of K decoders and returns (B, K, D, h, w). All work
on whole batches, and none waits for the device.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import jvp, vjp
from torch.nn.functional import normalize, pad

# --- random perturbations -------------------------------------------------------------------------------


def feature_noise(features: Tensor, noise: Tensor) -> Tensor:
    """Return F-Noise: z ⊙ N + z. noise N: (B or 1, K, D, h, w)."""
    return features[:, None] * (1 + noise).to(features.dtype)


def feature_drop(features: Tensor, threshold: Tensor) -> Tensor:
    """Apply F-Drop: zero the places where z, summed over channels, reaches ``threshold`` of its largest sum.

    threshold γ: (B or 1, K) in [0, 1].
    """
    activity = features.sum(dim=1)
    largest = activity.amax(dim=(1, 2))
    limit = (threshold * largest[:, None])[:, :, None, None]
    return features[:, None] * (activity[:, None] < limit)[:, :, None]


def channel_dropout(features: Tensor, draws: Tensor, rate: float) -> Tensor:
    """Zero whole channels (spatial dropout) with probability ``rate`` and scale the others by 1 / (1 − rate).

    draws: (B, K, D), uniform in [0, 1).
    """
    kept = (draws >= rate).to(features.dtype) / (1 - rate)
    return features[:, None] * kept[..., None, None]


def complementary_dropout(
    first: Tensor, second: Tensor, draws: Tensor, untouched: Tensor
) -> tuple[Tensor, Tensor]:
    """Give each of two views (B, D, h, w) the channels, doubled, that the other one loses (UniMatch V2).

    draws: (B, D), uniform in [0, 1); untouched: (B,) bool, the images whose views keep all channels.
    """
    kept = 2 * (draws >= 0.5).to(first.dtype)
    kept = kept.masked_fill(untouched[:, None], 1)[..., None, None]
    return first * kept, second * (2 - kept)


# --- perturbations that follow the prediction -----------------------------------------------------------


def masked(features: Tensor, places: Tensor) -> Tensor:
    """Zero the features outside ``places`` (B, h, w) or (B, K, h, w) bool."""
    places = places if places.ndim == 4 else places[:, None]
    return features[:, None] * places[:, :, None]


def guided_cutout(features: Tensor, objects: Tensor, draws: Tensor, share: float) -> Tensor:
    """Apply G-Cutout: zero a random box, ``share`` as high and wide, in the bounding box of each object.

    objects: (B, h, w) int64, see ``connected_regions``; draws: (B, K, h w, 2), uniform in [0, 1): the place
    of an object's box, down and right. Sides are rounded down to whole positions, so an object that is less
    than 1 / share high or wide loses nothing. The released code cuts on the full-size prediction, and only
    objects of more than 50 contour points (models/decoders.py 183).
    """
    batch, height, width = objects.shape
    count = draws.shape[1]
    least, largest = _bounding_boxes(objects)
    extent = (largest - least + 1).clamp(min=0)[:, None]  # (B, 1, h w, 2), zero where there is no object
    side = (extent * share).long()
    first = least[:, None] + (draws * (extent - side + 1)).long()
    last = first + side

    # A box adds one to its places as four corners of a doubly cumulative sum.
    corners = torch.zeros(batch, count, (height + 1) * (width + 1), dtype=torch.int64, device=objects.device)
    erases = (side > 0).all(dim=-1).expand(batch, count, -1).long()
    for y, x, sign in ((first, first, 1), (last, first, -1), (first, last, -1), (last, last, 1)):
        place = (y[..., 0] * (width + 1) + x[..., 1]) * erases
        corners.scatter_add_(2, place, sign * erases)
    boxes = corners.unflatten(2, (height + 1, width + 1)).cumsum(2).cumsum(3)[..., :height, :width]
    return masked(features, boxes == 0)


def connected_regions(labels: Tensor, ignore: int) -> Tensor:
    """Return which connected region of one label each position belongs to: (B, h, w) int64.

    labels: (B, h, w) int64. Regions connect across sides and corners. A region is named by the first of its
    positions, counted by rows; positions of label ``ignore`` get h w.

    Every round, each position hooks onto the least of its neighbours' ancestors, and so does its parent
    (FastSV; Zhang, Azad, Hu, SIAM PP 2020): regions grow by doubling, and ⌈log₂ h w⌉ rounds join what lies in
    their reach. A region more winding than that would stay in parts, each an object of its own. The released
    code follows contours on the host, one image after the other (models/decoders.py 175-193).
    """
    batch, height, width = labels.shape
    places = height * width
    own = torch.arange(places, device=labels.device).expand(batch, -1)
    same = (_neighbours(labels, ignore) == labels[..., None]) & (labels != ignore)[..., None]
    parent = own
    for _ in range(max(1, math.ceil(math.log2(places)))):
        ancestor = parent.gather(1, parent)
        near = torch.where(same, _neighbours(ancestor.view_as(labels), places), places)
        least = torch.minimum(near.amin(dim=3).flatten(1), ancestor)
        parent = torch.minimum(parent, least).scatter_reduce(1, parent, least, "amin")
    parent = parent.gather(1, parent).view_as(labels)
    return torch.where(labels == ignore, places, parent)


def _neighbours(values: Tensor, outside: int) -> Tensor:
    """Return the 3 x 3 values around each position of (B, h, w): (B, h, w, 9)."""
    return pad(values, (1, 1, 1, 1), value=outside).unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)


def _bounding_boxes(objects: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest row and column of the object that each position names.

    Both (B, h w, 2) int64; the least is beyond the largest where a position names no object.
    """
    batch, height, width = objects.shape
    places = height * width
    index = torch.arange(places, device=objects.device)
    corner = torch.stack((index // width, index % width, -(index // width), -(index % width)))
    named = objects.flatten(1)[:, None].expand(-1, 4, -1)
    nowhere = torch.full((batch, 4, places + 1), places, device=objects.device)
    least = nowhere.scatter_reduce(2, named, corner.expand(batch, -1, -1), "amin")[..., :places]
    return least[:, :2].mT, -least[:, 2:].mT


# --- the perturbation that changes the prediction most --------------------------------------------------


@torch.no_grad()
def adversarial(features: Tensor, draws: Tensor, decode: Callable[[Tensor], Tensor], radius: float) -> Tensor:
    """Return I-VAT's noise r for z: of norm ``radius``, it changes each decoder's prediction most.

    draws: (B, K, D, h, w), uniform in [0, 1), where the search begins; ``decode`` maps (B, K, D, h, w) to
    logits (B, K, C, H, W), decoder by decoder. The norm is taken over each image and decoder.

    One power iteration: r = radius · ∇_d KL(p(z) ‖ p(z + ξ d)) / ‖·‖ from a random unit vector d (Miyato et
    al., TPAMI 2018, section 3.3). It is taken in the limit ξ → 0, where the gradient is ξ Jᵀ (diag p − p pᵀ)
    J d with J the derivative of the logits: the released code's differences of ξ = 1e-6 (configs/config.json
    37) drown in float32's rounding, and the 1e-8 that it adds to the norm shortens r (models/decoders.py 117,
    133-142).
    """
    start = features.detach().float()[:, None].expand_as(draws).contiguous()
    direction = _unit(draws - 0.5)
    with torch.autocast(features.device.type, enabled=False):
        logits, change = jvp(decode, start, direction)
        p = torch.softmax(logits, dim=2)
        curved = p * (change - (p * change).sum(dim=2, keepdim=True))
        gradient = vjp(decode, start, curved)[1]
    return radius * _unit(gradient)


def _unit(rows: Tensor) -> Tensor:
    """Scale (B, K, ...) to norm one over all but the first two dimensions; zeros stay."""
    return normalize(rows.flatten(2), dim=2).view_as(rows)
