"""A step's batches, and networks, for tests of methods that label a weak view."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from semiseg.methods.contract import IGNORE, Labelled, Task
from semiseg.models.network import SegmentationNetwork
from tests.tiny import tiny_network

CLASSES, BATCH, CROP = 4, 3, 16
TASK = Task(total_steps=1000, labelled_images=12, background=0, unlabelled_images=30)

Array = NDArray[np.float64]


def network() -> SegmentationNetwork:
    """Return a tiny network that is sure of some pixels."""
    built = tiny_network(CLASSES, stride=2)
    with torch.no_grad():
        nn.init.normal_(built.classifier.weight, std=4)
        nn.init.zeros_(built.classifier.bias)
    return built


def batch(seed: int = 1) -> tuple[Labelled, dict[str, Tensor]]:
    """Return labelled images with ignored pixels, and weak views of which two have padding."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, BATCH, 3, CROP, CROP, generator=generator)
    masks = torch.randint(CLASSES, (BATCH, CROP, CROP), generator=generator)
    masks[:, :3] = IGNORE
    padding = torch.zeros(BATCH, CROP, CROP, dtype=torch.uint8)
    padding[0, :, 13:] = padding[1, 11:] = IGNORE
    return Labelled(images[0], masks), {"image": images[1], "mask": padding}


def boxes(seed: int) -> Tensor:
    """Return places to paste, a box in each image: (B, H, W) bool."""
    places = torch.zeros(BATCH, CROP, CROP, dtype=torch.bool)
    for i in range(BATCH):
        places[i, 2 + seed + i : 9 + seed + i, 4 - i : 12] = True
    return places


def probabilities(network: SegmentationNetwork, images: Tensor) -> Array:
    """Return the network's probabilities (B, C, H, W) in the mode that it is in; it learns nothing."""
    with torch.no_grad():
        found: Array = network(images).double().softmax(dim=1).numpy()
    return found
