"""Random samples of pixels, of a fixed size, from the rows of all processes.

Rows are drawn by their place in a random order of their group, so no step waits for the device to learn how
many rows a group has. Several processes draw from all their rows together, and each receives the sample.
"""

import torch
from torch import Tensor

from semiseg.base.distributed import gathered, own, summed, uniform


@torch.no_grad()
def shuffled(groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return each row's place, from 0, in a random order of its group, and the groups' sizes.

    groups: (N,) int64 in [0, num_groups]; rows of num_groups belong to none. Groups span the processes.
    Returns (N,) and (num_groups,) int64.
    """
    keys, everyones = gathered(uniform(len(groups), device=groups.device)), gathered(groups)
    order = keys.argsort()
    order = order[everyones[order].argsort(stable=True)]
    size = torch.zeros(num_groups + 1, dtype=torch.int64, device=groups.device)
    size = size.scatter_add_(0, everyones, torch.ones_like(everyones))
    first = size.cumsum(0) - size
    place = torch.arange(len(order), device=groups.device) - first[everyones[order]]
    return own(torch.empty_like(place).scatter_(0, order, place)), size[:-1]


def sampled(rows: Tensor, slots: Tensor, size: int) -> Tensor:
    """Lay rows (N, D) out at their slots: (size, D), zeros where no process has a row, with gradient.

    slots: (N,) int64; rows whose slot is outside [0, size) are left out, the others' slots differ.
    """
    slots = torch.where((slots >= 0) & (slots < size), slots, size)
    source = torch.full((size + 1,), len(rows), device=rows.device)
    source = source.scatter(0, slots, torch.arange(len(rows), device=rows.device))[:-1]
    here = (source < len(rows))[:, None]
    return summed(torch.where(here, rows[source.clamp(max=len(rows) - 1)], 0))


@torch.no_grad()
def hard_and_easy(
    labels: Tensor, predicted: Tensor, num_classes: int, max_samples: int, max_views: int
) -> Tensor:
    """Choose pixels of every image and class, half of them wrongly predicted (Wang et al., ICCV 2021).

    labels: (B, n) int64, pixels outside [0, num_classes) are never chosen; predicted: (B, n) int64. A class
    of an image counts if it has more than ``max_views`` pixels there; all that count, of the whole batch,
    share ``max_samples`` evenly, at most ``max_views`` each. Half of a share are hard (predicted wrongly) and
    half easy; where one kind lacks pixels the other fills in. If more shares count than there are samples,
    none is chosen, where ContrastiveSeg's code fails. Returns each pixel's slot (B, n) int64 in
    [0, max_samples), or max_samples if it is not chosen; the slots of one share are neighbours.
    """
    batch, _ = labels.shape
    images = len(gathered(labels[:, :1]))
    image = own(torch.arange(images, device=labels.device))[:, None]
    known = (labels >= 0) & (labels < num_classes)
    share = torch.where(known, image * num_classes + labels, images * num_classes)
    easy = predicted == labels
    place, size = shuffled((2 * share + (known & easy)).flatten(), 2 * images * num_classes)
    place, (num_hard, num_easy) = place.view(batch, -1), size.view(-1, 2).unbind(dim=1)

    counts = num_hard + num_easy > max_views
    views = (max_samples // counts.sum().clamp(min=1)).clamp(max=max_views)
    hard = torch.minimum(torch.maximum(views // 2, views - num_easy), num_hard)
    first = (counts.cumsum(0) - 1) * views
    limit = torch.stack((hard, views - hard), dim=1).masked_fill(~counts[:, None], 0)
    start = torch.stack((first, first + hard), dim=1)

    kind = torch.where(known, 2 * share + easy, 0)
    chosen = known & (place < limit.flatten()[kind])
    return torch.where(chosen, start.flatten()[kind] + place, max_samples)
