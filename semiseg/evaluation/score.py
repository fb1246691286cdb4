"""Networks scored at their images' full resolution."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from semiseg.base.errors import UserError
from semiseg.evaluation.metrics import confusion_matrix, iou, mean_iou
from semiseg.evaluation.record import Score
from semiseg.models.network import SegmentationNetwork
from semiseg.training.device import enough_memory

BATCH_PIXELS = 2**20  # of neighbouring images of one size; at least one image

Image = tuple[str, Tensor, Tensor]
"""Its id, the image (3, H, W) uint8 and the mask (H, W) uint8 with 255 where it is not scored."""


Seen = Callable[[str, str, Tensor, Tensor], None]
"""Takes a network's name, an image's id, the predicted classes (H, W) int64 and the mask, on the device."""


def confusion(
    networks: Mapping[str, SegmentationNetwork],
    images: Iterable[Image],
    num_classes: int,
    device: torch.device,
    precision: str,
    seen: Seen | None = None,
) -> dict[str, Tensor]:
    """Each network's confusion matrix over ``images``, (C, C) int64 on the CPU, rows = target.

    All networks lie on ``device`` and see the same decoded images, in evaluation mode; every module's mode is
    as before afterwards. ``precision``: fp32, or bf16 autocast. ``seen`` is called for each image and
    network; without it, the host waits for the device once, at the end. Raises UserError for a mask of
    another size than its image, and where the GPU's memory is too small.
    """
    totals = torch.zeros(len(networks), num_classes, num_classes, dtype=torch.int64, device=device)
    with _evaluation(networks.values(), device, precision):
        for batch in _batches(images):
            height, width = batch[0][2].shape
            with enough_memory(f"scoring {len(batch)} image(s) of {width}x{height}", "set precision: bf16"):
                pixels = _pixels(torch.stack([image for _, image, _ in batch]), device)
                masks = torch.stack([mask for _, _, mask in batch]).to(device, non_blocking=True)
                for total, (name, network) in zip(totals, networks.items(), strict=True):
                    predicted = network(pixels).argmax(1)
                    total += confusion_matrix(predicted, masks, num_classes)
                    for (identifier, _, _), labels, mask in zip(batch, predicted, masks, strict=True):
                        if seen is not None:
                            seen(name, identifier, labels, mask)
    return dict(zip(networks, totals.cpu(), strict=True))


def score(matrix: Tensor, classes: Sequence[str]) -> Score:
    """The record's figures of a confusion matrix. Raises UserError if it has counted nothing."""
    if not matrix.any():
        raise UserError("nothing to score: no pixel of the evaluation list has a class; check its masks")
    values = dict(zip(classes, iou(matrix).tolist(), strict=True))
    return Score(
        miou=float(mean_iou(matrix)),
        iou={name: None if value != value else value for name, value in values.items()},
    )


def _pixels(images: Tensor, device: torch.device) -> Tensor:
    """(B, 3, H, W) uint8 -> float32 in [0, 1] on ``device``."""
    pixels = images.to(device, non_blocking=True).float().div_(255)
    return pixels.contiguous(memory_format=torch.channels_last)


def _batches(images: Iterable[Image]) -> Iterator[list[Image]]:
    """Neighbours of one size, at most BATCH_PIXELS together."""
    batch: list[Image] = []
    for name, image, mask in images:
        size = mask.shape
        if image.shape[1:] != size:
            raise UserError(
                f"{name}: its mask is {size[1]}x{size[0]} pixels, its image "
                f"{image.shape[2]}x{image.shape[1]}; prepare the dataset again"
            )
        if batch and (batch[0][2].shape != size or (len(batch) + 1) * size.numel() > BATCH_PIXELS):
            yield batch
            batch = []
        batch.append((name, image, mask))
    if batch:
        yield batch


@contextmanager
def _evaluation(
    networks: Iterable[SegmentationNetwork], device: torch.device, precision: str
) -> Iterator[None]:
    """Evaluation mode, no gradients, autocast; cuDNN does not time its algorithms anew for every size."""
    modules = [module for network in networks for module in network.modules()]
    modes = [module.training for module in modules]
    timing = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = False
        for module in modules:
            module.training = False
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(), autocast:
            yield
    finally:
        torch.backends.cudnn.benchmark = timing
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
