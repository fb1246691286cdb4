"""Score networks against whole masks, in the way that the protocol's ``evaluation`` says."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import InterpolationMode, resize

from semiseg.base.errors import UserError
from semiseg.base.gpu_memory import enough_memory
from semiseg.base.parameters import Evaluation, RunConfig
from semiseg.evaluation.metrics import Prediction, confusion_matrix, iou, mean_iou, true_negatives
from semiseg.evaluation.record import Score
from semiseg.models.network import SegmentationNetwork, size_of, upsample

BATCH_PIXELS = 2**21  # most pixels of neighbouring images that are scored together: one image of Cityscapes
OWN_SIZE = Evaluation(long_side=None, window=None, stride=None, flip=False, recalibrate=None)

Image = tuple[str, Tensor, Tensor]
"""An id, the image (3, H, W) uint8, and the mask (H, W) uint8 with 255 where it is not scored."""


OnPrediction = Callable[[str, str, Prediction], None]
"""Takes a network's name, an image's id and the prediction."""


@dataclass(frozen=True)
class Scoring:
    """How a run's networks are scored; the training loop validates with it."""

    num_classes: int
    device: torch.device
    precision: str  # fp32, or bf16 (autocast)
    evaluation: Evaluation = OWN_SIZE

    @classmethod
    def of(cls, config: RunConfig, device: torch.device) -> "Scoring":
        """Return the scoring of a run's protocol."""
        protocol = config.protocol
        return cls(len(config.dataset.classes), device, protocol.precision, protocol.evaluation)

    def count(
        self,
        networks: Mapping[str, SegmentationNetwork],
        images: Iterable[Image],
        on_prediction: OnPrediction | None = None,
    ) -> dict[str, Tensor]:
        """Return each network's confusion matrix over ``images``: (C, C) int64 on the CPU, rows = target.

        All networks lie on the device and see the same decoded images in evaluation mode; afterwards every
        module's mode is as before. The host waits for the device once, at the end. With ``on_prediction``
        networks see one image at a time, so that its prediction does not depend on its neighbours. Raises
        UserError for a mask of another size than its image, and if the GPU's memory is too small.
        """
        classes, device = self.num_classes, self.device
        totals = torch.zeros(len(networks), classes, classes, dtype=torch.int64, device=device)
        with evaluation_mode(networks.values(), device, self.precision):
            for batch in _batches(images, BATCH_PIXELS if on_prediction is None else 1):
                height, width = batch[0][2].shape
                with enough_memory(
                    f"scoring {len(batch)} image(s) of {width}x{height}",
                    "set precision: bf16, or a window, in the protocol",
                ):
                    # Only what the reader has pinned is copied without waiting; a stack of it is not pinned.
                    raw = torch.stack([image.to(device, non_blocking=True) for _, image, _ in batch])
                    masks = torch.stack([mask.to(device, non_blocking=True) for _, _, mask in batch])
                    for total, (name, network) in zip(totals, networks.items(), strict=True):
                        probabilities = predict(network, raw, self.evaluation)
                        labels = probabilities.argmax(1)
                        total += confusion_matrix(labels, masks, classes)
                        if on_prediction is not None:
                            seen = Prediction(probabilities[0], labels[0], masks[0])
                            on_prediction(name, batch[0][0], seen)
        return dict(zip(networks, totals.cpu(), strict=True))

    def figures(self, matrix: Tensor) -> dict[str, float]:
        """Return the figures that the history keeps of a confusion matrix, each in [0, 1]."""
        return {"miou": float(mean_iou(matrix)), "true_negatives": float(true_negatives(matrix))}


def predict(network: SegmentationNetwork, images: Tensor, evaluation: Evaluation = OWN_SIZE) -> Tensor:
    """Return class probabilities (B, C, H, W) float32 of images (B, 3, H, W) uint8 at their own size.

    With a sliding window they are the mean over the windows that see a pixel, with ``flip`` the mean with
    those of the mirrored image.
    """
    probabilities = _predict(network, images, evaluation)
    if evaluation.flip:
        mirrored = _predict(network, images.flip(-1), evaluation).flip(-1)
        probabilities = (probabilities + mirrored) / 2
    return probabilities


def _predict(network: SegmentationNetwork, images: Tensor, evaluation: Evaluation) -> Tensor:
    size = size_of(images)
    if evaluation.long_side is not None:
        scale = evaluation.long_side / max(size)
        smaller = [max(1, round(side * scale)) for side in size]
        images = resize(images, smaller, InterpolationMode.BILINEAR, antialias=True)
    pixels = images.float().div_(255).contiguous(memory_format=torch.channels_last)
    if evaluation.window is None:
        return network.logits(network.features(pixels), size).softmax(1)
    assert evaluation.stride is not None
    stride = max(1, int(evaluation.window * evaluation.stride))
    probabilities = _by_windows(network, pixels, evaluation.window, stride)
    return probabilities if size_of(probabilities) == size else upsample(probabilities, size)


def _by_windows(network: SegmentationNetwork, pixels: Tensor, window: int, stride: int) -> Tensor:
    """Average the probabilities of square windows, ``stride`` pixels apart; the last ends at the edge."""
    height, width = size_of(pixels)
    total = pixels.new_zeros(len(pixels), network.num_classes, height, width)
    seen = pixels.new_zeros(1, 1, height, width)
    for top in window_starts(height, window, stride):
        for left in window_starts(width, window, stride):
            place = (..., slice(top, top + window), slice(left, left + window))
            total[place] += network(pixels[place]).softmax(1)
            seen[place] += 1
    return total / seen


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along a side of ``length`` pixels, so that they cover all of it."""
    last = max(0, length - window)
    return sorted({*range(0, last, stride), last})


def score(matrix: Tensor, classes: Sequence[str]) -> Score:
    """Return the record's figures of a confusion matrix. Raises UserError if it counts no pixel."""
    if not matrix.any():
        raise UserError("nothing to score: no pixel of the evaluation list has a class; check its masks")
    values = dict(zip(classes, iou(matrix).tolist(), strict=True))
    return Score(
        miou=float(mean_iou(matrix)),
        iou={name: None if value != value else value for name, value in values.items()},
    )


def _batches(images: Iterable[Image], pixels: int) -> Iterator[list[Image]]:
    """Yield neighbouring images of one size, at most ``pixels`` together; at least one image."""
    batch: list[Image] = []
    for name, image, mask in images:
        size = mask.shape
        if image.shape[1:] != size:
            raise UserError(
                f"{name}: its mask is {size[1]}x{size[0]} pixels, its image "
                f"{image.shape[2]}x{image.shape[1]}; give the mask the size of its image"
            )
        if batch and (batch[0][2].shape != size or (len(batch) + 1) * size.numel() > pixels):
            yield batch
            batch = []
        batch.append((name, image, mask))
    if batch:
        yield batch


@contextmanager
def evaluation_mode(networks: Iterable[nn.Module], device: torch.device, precision: str) -> Iterator[None]:
    """Predict in evaluation mode, without gradients, in ``precision``; afterwards restore every mode.

    cuDNN does not time its algorithms meanwhile, and nothing is compiled: both would be done anew for every
    size of image.
    """
    modules = [module for network in networks for module in network.modules()]
    modes = [module.training for module in modules]
    timing = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = False
        for module in modules:
            module.training = False
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.compiler.set_stance("force_eager"), torch.inference_mode(), autocast:
            yield
    finally:
        torch.backends.cudnn.benchmark = timing
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
