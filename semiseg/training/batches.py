"""The batches of a run's steps, on the device."""

import sys
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from semiseg.base.parameters import RunConfig
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split
from semiseg.data.streams import Images, labelled_batches, truth_batches, unlabelled_batches
from semiseg.methods.contract import TRUTH, Labelled, Unlabelled, View
from semiseg.training.step import enough_memory_for_a_step

Batch = tuple[Labelled, Unlabelled | None]


def batches(
    config: RunConfig,
    dataset: PreparedDataset,
    split: Split,
    view: View | None,
    judged: bool,
    device: torch.device,
    first: int,
    last: int,
) -> Iterator[Batch]:
    """Yield the batches of steps [first, last); without a ``view`` they hold labelled images only.

    If pseudo-labels are ``judged``, the view is common.weak_view, and its hidden mask is read beside it.
    Raises UserError if the GPU's memory is too small.
    """
    protocol, seed = config.protocol, config.run.seed
    images = Images(dataset, protocol.image_cache_mib)
    if protocol.image_cache_mib:
        print(
            f"{config.run}: keeps at most {protocol.image_cache_mib} MiB of decoded images", file=sys.stderr
        )
    labelled = labelled_batches(
        images, split.labelled, protocol.geometry,
        protocol.labelled_batch, seed, first, last, protocol.workers, protocol.accumulate,
    )  # fmt: skip
    if view is None:
        for crops, masks in labelled:
            with enough_memory_for_a_step(config, unlabelled=False):
                batch = on_device(crops, masks, None, device)
            yield batch
        return
    unlabelled = unlabelled_batches(
        images, split.unlabelled, view,
        protocol.unlabelled_batch, seed, first, last, protocol.workers, protocol.accumulate,
    )  # fmt: skip
    if judged:
        truths = truth_batches(
            images, split.unlabelled, protocol.geometry,
            protocol.unlabelled_batch, seed, first, last, protocol.workers, protocol.accumulate,
        )  # fmt: skip
        unlabelled = ({**views, TRUTH: truth} for views, truth in zip(unlabelled, truths, strict=True))
    for (crops, masks), views in zip(labelled, unlabelled, strict=True):
        with enough_memory_for_a_step(config, unlabelled=True):
            batch = on_device(crops, masks, views, device)
        yield batch


def on_device(images: Tensor, masks: Tensor, views: dict[str, Tensor] | None, device: torch.device) -> Batch:
    """Move a step's tensors to ``device``: images and masks (B, H, W) uint8, and what the view returned."""
    labelled = Labelled(_moved(images, device), masks.to(device, torch.int64, non_blocking=True))
    if views is None:
        return labelled, None
    return labelled, moved(views, device)


def moved(views: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move what a view returned to ``device``; images (B, 3, H, W) uint8 become float32 in [0, 1]."""
    return {name: _moved(view, device) for name, view in views.items()}


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor; images (B, 3, H, W) uint8 become float32 in [0, 1]."""
    tensor = tensor.to(device, non_blocking=True)
    if tensor.dtype == torch.uint8 and tensor.ndim == 4:
        tensor = tensor.float().div_(255).contiguous(memory_format=torch.channels_last)
    return tensor
